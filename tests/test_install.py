"""Installing as users do: the wheel, and what `od-qat install-od-api` adds beside a TensorFlow.

pip is real, and so are hashes, refusals and full disks. What is installed is small: packages of the same
names, made here, in a folder in place of the index. (`make setup` runs the same command with the real ones.)
"""

import ast
import base64
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from od_qat import errors
from od_qat.od_api import install, packages
from tests.conftest import REPOSITORY, Finished

COPIED = ("od_qat", "requirements", "MANIFEST.in", "LICENSE", "README.md", "pyproject.toml")
# What the environment with a TensorFlow, which users have, is to lack.
LACKING = tuple(
    "object_detection tf_object_detection_api nets datasets deployment preprocessing lvis tf_keras "
    "contextlib2 od_qat __editable__".split()
)
OD_API_FILES = {
    "object_detection/__init__.py": "",
    "object_detection/protos/pipeline_pb2.py": "",
    "object_detection/legacy/trainer.py": "",
    "nets/__init__.py": "",
    "nets/mobilenet/mobilenet_v2.py": "",
    "deployment/__init__.py": "",
    "deployment/model_deploy.py": "",
    "datasets/__init__.py": "slim = True\n",
    "datasets/cifar10.py": "",
}


def make_wheel(folder, name, version, files, requires=""):
    """Writes a wheel into a folder; returns the line that pins it."""
    files = dict(files)
    info = "{}-{}.dist-info/".format(name.replace("-", "_"), version)
    files[info + "METADATA"] = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(name, version)
    files[info + "METADATA"] += "Requires-Dist: {}\n".format(requires) if requires else ""
    files[info + "WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append("{},sha256={},{}\n".format(path, digest, len(text)))
    files[info + "RECORD"] = "".join(rows) + info + "RECORD,,\n"
    path = os.path.join(folder, "{}-{}-py3-none-any.whl".format(name.replace("-", "_"), version))
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    with open(path, "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    return "{}=={} --hash=sha256:{}".format(name, version, digest)


class Environment(object):
    """An environment with this one's TensorFlow and packages and od_qat's wheel, without OD API and lvis.

    Args:
      folder: a Python environment.
    """

    def __init__(self, folder):
        self.python = os.path.join(folder, "bin", "python")
        self.script = os.path.join(folder, "bin", "od-qat")
        # (Commands run in a folder that is neither the project's nor has data sets in it.)
        self.elsewhere = os.path.join(folder, "elsewhere")
        (self.packages,) = [
            os.path.join(folder, "lib", name, "site-packages")
            for name in os.listdir(os.path.join(folder, "lib"))
        ]

    def _process(self, arguments, environment):
        keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OD_API", "PYTHON")}
        keep.update(PIP_CONFIG_FILE=os.devnull, **environment)
        return subprocess.Popen(
            [self.python] + list(arguments),
            cwd=self.elsewhere,
            env=keep,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments, **environment):
        """python ARGUMENTS -> Finished."""
        process = self._process(arguments, environment)
        output, said = process.communicate(timeout=120)
        return Finished(process.returncode, output.decode("utf-8"), said.decode("utf-8"))

    def start(self, *arguments, **environment):
        """od-qat ARGUMENTS, running."""
        return self._process(("-m", "od_qat") + arguments, environment)

    def command(self, *arguments, **environment):
        """od-qat ARGUMENTS."""
        return self.run("-m", "od_qat", *arguments, **environment)

    def listing(self):
        """What is installed in it, without what Python compiles."""
        return sorted(name for name in os.listdir(self.packages) if name != "__pycache__")

    def versions(self):
        """(name, version) of everything that it sees."""
        found = "importlib_metadata" if sys.version_info < (3, 8) else "importlib.metadata"
        code = (
            "import {} as metadata; print({{(one.metadata['Name'].replace('_', '-'), one.version) "
            "for one in metadata.distributions()}})".format(found)
        )
        return ast.literal_eval(self.run("-c", code).output)

    def write(self, name, text):
        """A file among the packages."""
        path = os.path.join(self.packages, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as stream:
            stream.write(text)
        return path

    def pin(self, name, lines):
        """Gives the installed od_qat other pins."""
        self.write("od_qat/od_api/requirements/" + name, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """`make dist`, of a copy of the project."""
    copy = str(tmp_path_factory.mktemp("project"))
    for name in COPIED:
        source = os.path.join(REPOSITORY, name)
        if os.path.isdir(source):
            shutil.copytree(source, os.path.join(copy, name), ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    script = os.path.join(copy, "requirements", "dist.sh")
    done = subprocess.run(["bash", script, sys.executable], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    found = sorted(os.listdir(os.path.join(copy, "dist")))
    assert found[0].endswith(".whl") and found[1].endswith(".tar.gz")
    return os.path.join(copy, "dist", found[0])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder with links to this environment's packages, but for LACKING."""
    folder = tmp_path_factory.mktemp("others")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for name in os.listdir(place):
            if not name.startswith(LACKING) and not name.endswith(".pth") and not (folder / name).exists():
                os.symlink(os.path.join(place, name), str(folder / name))
    return str(folder)


def make_environment(folder, wheel, others):
    venv.create(folder, with_pip=False)
    environment = Environment(folder)
    os.mkdir(environment.elsewhere)
    environment.write("others.pth", others + "\n")
    done = environment.run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert done.status == 0, done.errors
    return environment


@pytest.fixture(scope="module")
def fresh(wheel, others, tmp_path_factory):
    """After `pip install .`; tests leave it as it is."""
    return make_environment(str(tmp_path_factory.mktemp("fresh") / "environment"), wheel, others)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """(folder of packages in place of an index, the lists that pin them by name)."""
    folder = str(tmp_path_factory.mktemp("index"))
    pins = {
        "pinned.txt": [
            make_wheel(folder, "tf-object-detection-api", "0.1", OD_API_FILES, "tf-models-official"),
            make_wheel(folder, "lvis", "0.5.3", {"lvis/__init__.py": ""}),
        ],
        "tf_keras.txt": [
            make_wheel(folder, "tf-keras", pin.version, {"tf_keras/__init__.py": ""}, "tensorflow")
            for pin in packages.read_list("tf_keras.txt")
        ],
    }
    # The newer one would replace a package that is there; so it has to be the older.
    make_wheel(folder, "contextlib2", "21.6.0", {"contextlib2/__init__.py": ""}, "six")
    make_wheel(folder, "contextlib2", "99.0", {"contextlib2/__init__.py": ""}, "six>=99")
    make_wheel(folder, "six", "99.0", {"six.py": ""})
    return folder, pins


@pytest.fixture
def environment(fresh, index, tmp_path):
    """A copy of `fresh`, whose od_qat has the pins of `index`."""
    folder = str(tmp_path / "environment")
    shutil.copytree(os.path.dirname(os.path.dirname(fresh.python)), folder, symlinks=True)
    copy = Environment(folder)
    for name, lines in index[1].items():
        copy.pin(name, lines)
    return copy


def from_folder(folder):
    """pip's settings for a folder in place of an index."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder}


def not_started(environment):
    """Whether nothing of the OD API, and nothing aside, is there."""
    parts = ("object_", "lvis", "nets", "deployment", "tf_", ".od_qat")
    return not [name for name in environment.listing() if name.startswith(parts)]


def one_line(done):
    """The one line of error of a command that failed."""
    assert done.status == 1, done.output + done.errors
    (line,) = done.errors.splitlines()
    assert line.startswith("od-qat: error: ") and "Fix: " in line
    return line


def content_of(folder):
    """Every file that is no Python and was not made by it, relative to the folder."""
    found = set()
    for place, _, names in os.walk(folder):
        found.update(os.path.relpath(os.path.join(place, name), folder) for name in names)
    return {path for path in found if not path.endswith((".py", ".pyc"))}


@pytest.mark.tf1
@pytest.mark.long_on_tf1
class TestTheWheel(object):
    def test_has_everything_that_the_project_has(self, fresh):
        installed = os.path.join(fresh.packages, "od_qat")
        files = content_of(installed)
        assert files == content_of(os.path.join(REPOSITORY, "od_qat"))
        assert {"patches/generations.json", "patches/series/2022", "od_api/requirements/pinned.txt"} <= files
        code = (
            "import od_qat, od_qat.cli.demo as demo, od_qat.od_api.patching as patching, os;"
            "print(os.path.dirname(od_qat.__file__)); print(sorted(patching.generations()));"
            "print(sorted(os.listdir(demo.CONFIG_FOLDER))[0])"
        )
        done = fresh.run("-c", code)
        assert done.status == 0, done.errors
        where, keys, config = done.output.splitlines()
        assert where == installed and "trees" in keys and config.endswith(".config")

    def test_its_command_runs(self, fresh):
        done = fresh.run(fresh.script, "--help")
        assert (done.status, done.errors) == (0, "") and "install-od-api" in done.output

    def test_only_the_extra_tf_asks_for_a_tensorflow(self, fresh):
        (info,) = [name for name in fresh.listing() if name.startswith("od_qat-")]
        with open(os.path.join(fresh.packages, info, "METADATA"), encoding="utf-8") as stream:
            lines = [line.strip() for line in stream.read().split("\n\n")[0].splitlines()]
        extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra")}
        assert extras == {"tf", "demo", "estimator", "protos"}
        requires = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
        always = [line for line in requires if "extra ==" not in line]
        assert {"numpy", "lxml"} <= set(always)
        owned = ("tensorflow", "tf-", "keras", "protobuf")  # TensorFlow itself, and what it chooses
        assert [line for line in always if line.startswith(owned)] == []
        assert any(line.startswith("tensorflow") and "tf" in line.split("extra ==")[1] for line in requires)

    def test_the_doctor_names_the_command_that_brings_what_is_missing(self, fresh):
        done = fresh.command("doctor", "--quick")
        assert done.status == 1 and done.errors == ""
        for line in (
            "lvis (missing): od-qat install-od-api",
            "OD API (missing): od-qat install-od-api, or set OD_API=",
            "OD API's packages (missing): od-qat install-od-api",
        ):
            assert line in done.output


class TestInstallOdApi(object):
    def test_brings_what_is_missing_and_replaces_nothing(self, environment, index):
        # A package of the same name as one of slim's, which is there.
        own = environment.write("datasets/__init__.py", "mine = True\n")
        before, stood = environment.versions(), environment.listing()

        done = environment.command("install-od-api", "--check", **from_folder(index[0]))
        assert done.status == 0 and "Would install: contextlib2" in done.output
        assert environment.listing() == stood

        done = environment.command("install-od-api", **from_folder(index[0]))
        assert (done.status, done.errors) == (0, ""), done.errors
        lines = done.output.splitlines()
        assert lines[0].startswith("TensorFlow ") and lines[0].endswith(" is installed and stays as it is")
        assert lines[1].startswith("Installing contextlib2 and what")
        assert lines[2].startswith("Installing tf-object-detection-api 0.1, lvis 0.5.3")
        assert lines[3].startswith("Left out: slim's datasets")
        assert lines[4].startswith("Done: ") and environment.packages in lines[4]

        after = environment.versions()
        assert before < after
        added = dict(after - before)
        added.pop("tf-keras", None)
        assert added == {"contextlib2": "21.6.0", "lvis": "0.5.3", "tf-object-detection-api": "0.1"}
        for path in OD_API_FILES:
            here = os.path.exists(os.path.join(environment.packages, path))
            assert here == (path != "datasets/cifar10.py"), path
        assert [name for name in environment.listing() if name.startswith(".od_qat")] == []

        done = environment.command("install-od-api", PIP_NO_INDEX="1")
        assert done.status == 0 and done.output.splitlines()[-1] == "Nothing to do. Next: od-qat doctor"

        # pip, which takes away what is in RECORD, would leave the other package alone.
        info = os.path.join(environment.packages, "tf_object_detection_api-0.1.dist-info")
        with open(os.path.join(info, "RECORD")) as stream:
            recorded = {line.partition(",")[0] for line in stream}
        assert "nets/__init__.py" in recorded
        assert not [path for path in recorded if path.startswith("datasets")]
        with open(own) as stream:
            assert stream.read() == "mine = True\n"

    def test_another_version_is_replaced_when_asked_to(self, environment, index, tmp_path):
        line = make_wheel(str(tmp_path), "lvis", "0.6.0", {"lvis/__init__.py": "", "lvis/new.py": ""})
        environment.pin("pinned.txt", [line])
        environment.pin("tf_keras.txt", ["tf-keras==99.0.0"])
        environment.write("contextlib2.py", "")
        with zipfile.ZipFile(os.path.join(index[0], "lvis-0.5.3-py3-none-any.whl")) as older:
            older.extractall(environment.packages)
        done = environment.command("install-od-api")
        assert done.status == 0
        assert "lvis 0.5.3 is not the version for this environment (0.6.0); it stays" in done.output
        done = environment.command("install-od-api", "--replace", **from_folder(str(tmp_path)))
        assert done.status == 0, done.errors
        assert "Installing lvis 0.6.0" in done.output
        found = [name for name in environment.listing() if name.startswith("lvis-")]
        assert found == ["lvis-0.6.0.dist-info"]
        assert os.path.exists(os.path.join(environment.packages, "lvis", "new.py"))

    def test_without_a_network(self, environment):
        nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
        line = one_line(environment.command("install-od-api", **nowhere))
        assert "pip reached no package index, asked for contextlib2" in line
        log = line.rpartition(" ")[2]
        with open(log) as stream:
            assert "127.0.0.1" in stream.read()
        os.unlink(log)
        assert not_started(environment)

    def test_other_content_than_the_hash_says(self, environment, index, tmp_path):
        environment.write("contextlib2.py", "")
        for name in os.listdir(index[0]):
            shutil.copy(os.path.join(index[0], name), str(tmp_path))
        make_wheel(str(tmp_path), "lvis", "0.5.3", {"lvis/__init__.py": "import evil"})
        line = one_line(environment.command("install-od-api", **from_folder(str(tmp_path))))
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in line
        os.unlink(line.rpartition(" ")[2])
        assert not_started(environment)

    def test_a_full_disk(self, wheel, others, small_disk, tmp_path):
        environment = make_environment(os.path.join(small_disk(6000), "environment"), wheel, others)
        environment.write("contextlib2.py", "")
        files = dict(OD_API_FILES, **{"object_detection/large.py": "#" * 6000000})
        environment.pin("pinned.txt", [make_wheel(str(tmp_path), "tf-object-detection-api", "0.1", files)])
        environment.pin("tf_keras.txt", ["tf-keras==99.0.0"])
        line = one_line(environment.command("install-od-api", **from_folder(str(tmp_path))))
        assert "the disk is full" in line and "No space left on device" in line
        os.unlink(line.rpartition(" ")[2])
        assert not_started(environment)

    def test_half_of_an_od_api_is_named(self, environment):
        environment.write("object_detection/__init__.py", "")
        line = one_line(environment.command("install-od-api"))
        assert "the installed OD API is incomplete: at " + environment.packages in line
        assert "found no object_detection/protos/pipeline_pb2.py" in line

    def test_a_package_that_is_in_the_way_is_named(self, environment, index):
        environment.write("contextlib2.py", "")
        environment.write("nets/__init__.py", "")
        line = one_line(environment.command("install-od-api", **from_folder(index[0])))
        assert "a package of the same name is in the way: at " + environment.packages in line
        assert "object_detection" not in environment.listing()

    def test_an_od_api_of_the_user_s_own_stays(self, environment, tmp_path):
        done = environment.command("install-od-api", "--check", OD_API=str(tmp_path))
        assert done.status == 0
        assert "Installed already: an OD API of your own ({})".format(tmp_path) in done.output
        assert "tf-object-detection-api" not in done.output
        line = one_line(environment.command("install-od-api", OD_API=str(tmp_path / "none")))
        assert "no such folder: at {}".format(tmp_path / "none") in line

    def test_sigterm_leaves_nothing_aside(self, environment):
        environment.write("contextlib2.py", "")
        with socket.socket() as silent:  # an index that takes connections and never answers
            silent.bind(("127.0.0.1", 0))
            silent.listen(1)
            address = "http://127.0.0.1:{}/simple".format(silent.getsockname()[1])
            process = environment.start("install-od-api", PIP_INDEX_URL=address)
            silent.settimeout(60)
            connection, _ = silent.accept()
            process.terminate()
            process.communicate(timeout=60)
            connection.close()
        assert process.returncode == 143
        assert not_started(environment)

    @pytest.mark.tf1
    def test_without_a_tensorflow(self, run_python):
        done = run_python("-S", "-m", "od_qat", "install-od-api")
        assert done.status == 1 and done.output == ""
        (line,) = done.errors.splitlines()
        assert "TensorFlow is not installed; it has to come" in line and "pip install tensorflow" in line

    def test_a_tensorflow_that_no_tf_keras_is_known_for(self, monkeypatch):
        # (None is newer than the newest.)
        found = [packages.Installed("tensorflow-rocm", "9.9.1")]
        monkeypatch.setattr(packages, "tensorflows", lambda: found)
        monkeypatch.setattr(packages, "is_importable", lambda module: module != "tf_keras")
        says = "found TensorFlow 9.9.1.*pip install --no-deps 'tf-keras==9.9"
        with pytest.raises(errors.EnvironmentProblem, match=says):
            install.make_plan()

    def test_without_pip(self, monkeypatch):
        monkeypatch.setattr(packages, "is_importable", lambda module: module != "pip")
        plan = install.Plan(packages.Installed("tensorflow", "2.21.0"), [], [], [], [], [])
        with pytest.raises(
            errors.EnvironmentProblem, match="no pip.*python -m ensurepip.*uv pip install pip"
        ):
            install.install(plan, print)

    def test_the_system_s_python_is_left_alone(self, monkeypatch, tmp_path):
        (tmp_path / "EXTERNALLY-MANAGED").write_text("")
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
        plan = install.Plan(packages.Installed("tensorflow", "2.21.0"), [], [], [], [], [])
        with pytest.raises(errors.EnvironmentProblem, match="this Python is the system's.*python3 -m venv"):
            install.install(plan, print)


class TestTheLists(object):
    """The lists that extras, the command and the locks share fit each other."""

    @pytest.fixture(scope="class")
    def requirement(self):
        return pytest.importorskip("packaging.requirements").Requirement

    def read(self, *path):
        with open(os.path.join(REPOSITORY, *path), encoding="utf-8") as stream:
            lines = [line.split("#")[0].strip() for line in stream]
        return [line for line in lines if line]

    @pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
    def test_the_locks_keep_the_bounds_of_the_lists(self, version, requirement):
        lock = "py{}.txt".format(version.replace(".", ""))
        pins = dict(line.split("==") for line in self.read("requirements", "lock", lock))
        asked = self.read("od_qat", "od_api", "requirements", "needed.in")
        for name in ("base", "demo", "protos", "dev"):
            asked += self.read("requirements", name + ".in")
        for one in map(requirement, asked):
            assert one.specifier.contains(pins[one.name]), "{}: {}".format(lock, one)

    def test_the_extra_has_the_tensorflow_of_make_setup_and_each_has_its_tf_keras(self, requirement):
        (extra,) = map(requirement, self.read("requirements", "tf.in"))
        pins = [requirement(line) for line in self.read("requirements", "tensorflow.txt")]
        versions = [next(iter(pin.specifier)).version for pin in pins]
        assert versions and all(extra.specifier.contains(version) for version in versions)
        assert all(packages.tf_keras_pin(version) for version in versions)

    def test_everything_that_comes_without_dependencies_comes_by_hash(self):
        for pin in packages.read_list("pinned.txt") + packages.read_list("tf_keras.txt"):
            assert pin.version and len(pin.line.partition("--hash=sha256:")[2]) == 64
