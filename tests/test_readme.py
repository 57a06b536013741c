"""What the README says about ops and commands is what the policy and the matrix say."""

import os

import pytest

from od_qat.rewrite import policy
from tests.generations import matrix

pytestmark = pytest.mark.tf1

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


def test_the_table_of_ops_is_the_policys():
    with open(README, encoding="utf-8") as stream:
        text = stream.read()
    wanted = policy.table()
    assert wanted in text, "put this into the README in place of the old table:\n" + wanted


def test_the_table_of_commands_is_the_matrix():
    with open(README, encoding="utf-8") as stream:
        text = stream.read()
    wanted = matrix.table(matrix.load())
    assert wanted in text, "put this into the README in place of the old table:\n" + wanted
    assert "not run" not in wanted
