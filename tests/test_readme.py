"""What the README says about ops is what the policy says."""

import os

import pytest

from od_qat.rewrite import policy

pytestmark = pytest.mark.tf1

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


def test_the_table_of_ops_is_the_policys():
    with open(README, encoding="utf-8") as stream:
        text = stream.read()
    wanted = policy.table()
    assert wanted in text, "put this into the README in place of the old table:\n" + wanted
