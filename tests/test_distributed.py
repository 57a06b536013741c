"""Parameter server, chief and worker on loopback: they train together, are killed, come back and end."""

import json
import os
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.checkpoints import object_based  # noqa: E402
from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import ConfigError  # noqa: E402
from od_qat.rewrite import live  # noqa: E402
from od_qat.training import cluster  # noqa: E402
from od_qat.training import session as training_session  # noqa: E402
from od_qat.training.signals import StopSignals  # noqa: E402
from od_qat.training.task import Schedule, TrainingTask  # noqa: E402
from tests import tiers  # noqa: E402
from tests.helpers import sessions, tiny_classifier, tiny_detector, worker  # noqa: E402

pytestmark = pytest.mark.tf1

try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from od_qat.od_api import halves, keras_models, models, pipeline  # noqa: E402
from od_qat.od_api.detector_task import DetectorTask  # noqa: E402
from od_qat.training import graph as training_graph  # noqa: E402

needs_tf2 = pytest.mark.skipif(IS_TF1, reason="TF 2 models need TensorFlow 2")

# So many that training goes on while a killed worker builds its graph again.
STEPS = 300
# A process takes a minute to build its graph where cores are shared.
_PATIENCE = 900


class Cluster(object):
    """One parameter server, one chief, one worker, each a process of its own.

    Args:
      folder: for logs and checkpoints.
      arguments: of the interpreter, a function of the train_dir.
    """

    def __init__(self, folder, arguments):
        self.train_dir = os.path.join(folder, "train")
        self._folder, self._arguments = folder, arguments(self.train_dir)
        ports = []
        sockets = [socket.socket() for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
        for one in sockets:
            one.close()
        jobs = ("ps", "master", "worker")
        self._cluster = {job: ["127.0.0.1:{}".format(port)] for job, port in zip(jobs, ports)}
        self.processes = {}

    def start(self, job):
        place = {"cluster": self._cluster, "task": {"type": job, "index": 0}}
        self.processes[job] = tiny_detector.start(
            self._arguments, self._log_path(job), env={"TF_CONFIG": json.dumps(place)}
        )

    def kill(self, job):
        self.processes[job].send_signal(signal.SIGKILL)
        self.processes[job].wait()

    def log(self, job):
        with open(self._log_path(job), encoding="utf-8", errors="replace") as stream:
            return stream.read()

    def steps_of(self, job):
        """Lines that say at which step it is; not those that say at which it all ended."""
        lines = self.log(job).splitlines()
        return sum("step " in line and "ended already" not in line for line in lines)

    def _log_path(self, job):
        return os.path.join(self._folder, job + ".log")

    def step(self):
        newest = tf.train.latest_checkpoint(self.train_dir)
        return checkpoints.step_of(newest) if newest else -1

    def wait_for(self, condition, what):
        until = time.time() + _PATIENCE
        while not condition():
            ended = [job for job, process in self.processes.items() if process.poll() not in (None, 0)]
            if ended or time.time() > until:
                logs = "\n".join("== {}\n{}".format(job, self.log(job)[-3000:]) for job in self.processes)
                pytest.fail("no {}; ended: {}\n{}".format(what, ended, logs))
            time.sleep(0.2)

    def begin(self, until_step):
        """Starts all; returns once a checkpoint of that step is there and the worker has trained too."""
        for job in ("ps", "worker", "master"):
            self.start(job)
        self.wait_for(lambda: self.step() >= until_step, "checkpoint of step {}".format(until_step))
        self.wait_for(lambda: self.steps_of("worker"), "step of the worker")

    def wait_for_the_end(self):
        """All end by themselves, and the parameter server knows of both workers."""
        for job in ("master", "worker", "ps"):
            self.wait_for(lambda job=job: self.processes[job].poll() == 0, "end of the " + job)
        assert "training has ended: 2 of 2 workers" in self.log("ps")

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def _tiny_cluster(tmp_path, synchronous, steps):
    """Three processes whose model is one number, a tenth of a second a step."""
    program = ["-m", "tests.helpers.worker"]
    last = [str(steps), "sync" if synchronous else "async", "0.1"]
    return Cluster(str(tmp_path), lambda train_dir: program + [train_dir] + last)


def _require_slope(trained):
    """The number has been learnt."""
    slope = tf.train.load_checkpoint(checkpoints.latest(trained.train_dir)).get_tensor("slope")
    assert slope == pytest.approx(3.0, abs=0.1)


def both_ways(quick):
    """Asynchronous steps and those of sync_replicas; one of them in `make test`."""
    return pytest.mark.parametrize(
        "synchronous",
        [pytest.param(one, marks=[] if one == quick else [pytest.mark.long]) for one in (False, True)],
        ids=["asynchronous", "sync_replicas"],
    )


def _kill_and_restart(trained):
    """Worker and chief are killed in turn and started again; all three then end by themselves.

    Returns:
      the step that the second chief can go on from.
    """
    try:
        trained.begin(until_step=2)
        trained.kill("worker")
        lines = trained.steps_of("worker")
        trained.start("worker")
        trained.wait_for(lambda: trained.steps_of("worker") > lines, "step of the new worker")

        trained.kill("master")
        before = trained.step()
        trained.start("master")
        trained.wait_for_the_end()
    finally:
        trained.close()
    for job in ("ps", "worker", "master"):
        assert "Traceback" not in trained.log(job) and "threads still running" not in trained.log(job)
    return before


@pytest.mark.long_on_tf1
@pytest.mark.zoo
@both_ways(quick=True)
def test_processes_are_killed_and_come_back(tmp_path, synchronous):
    steps = 250
    trained = _tiny_cluster(tmp_path, synchronous, steps)
    before = _kill_and_restart(trained)
    assert 2 <= before < steps <= trained.step()
    restored = os.path.join(trained.train_dir, "model.ckpt-{}".format(before))
    assert "Restoring parameters from " + restored in trained.log("master")
    assert trained.log("worker").rstrip().endswith("ended")
    _require_slope(trained)


@pytest.mark.long
@both_ways(quick=False)
def test_a_parameter_server_that_was_lost_is_started_again(tmp_path, synchronous):
    """Its variables are gone with it: the chief puts in those of its newest checkpoint, and all go on."""
    steps = 400
    trained = _tiny_cluster(tmp_path, synchronous, steps)
    try:
        trained.begin(until_step=5)
        trained.kill("ps")
        before = trained.step()
        trained.start("ps")
        trained.wait_for_the_end()
    finally:
        trained.close()
    assert 5 <= before < steps <= trained.step()
    restored = re.findall(r"Restoring parameters from \S+model.ckpt-(\d+)", trained.log("master"))
    assert len(restored) == 1 and int(restored[0]) >= before
    assert not any("threads still running" in trained.log(job) for job in ("ps", "worker", "master"))
    _require_slope(trained)


@pytest.mark.long
def test_a_classifier_is_trained_by_two_workers(tmp_path):
    """With QAT; the chief is killed, and another goes on from its checkpoint."""
    from od_qat.classifiers import commands as of_classifiers

    folder, steps = str(tmp_path), 200
    pictures = tiny_classifier.write_folder(os.path.join(folder, "pictures"))
    path = os.path.join(folder, "qat.config")
    with open(path, "w") as stream:
        block = 'folder: "{}"'.format(pictures)
        stream.write(tiny_classifier.config(block, block, True, more="batch_norm_decay: 0.8"))
    program = ["-m", "od_qat", "train", "--pipeline_config_path=" + path, "--save_interval_secs=1"]
    program += ["--override=training.num_steps={}".format(steps)]
    trained = Cluster(folder, lambda train_dir: program + ["--train_dir=" + train_dir])
    before = _kill_and_restart(trained)
    assert 2 <= before < steps <= trained.step()
    metrics = of_classifiers.evaluate(path, trained.train_dir, os.path.join(folder, "eval"), run_once=True)
    assert metrics["Accuracy"] > 0.8
    assert tiny_detector.fake_quants(os.path.join(folder, "eval", "frozen_eval_graph.pb")) > 40


@pytest.mark.long
@both_ways(quick=True)
@pytest.mark.parametrize("tf2", [False, pytest.param(True, marks=needs_tf2)], ids=["slim", "keras"])
def test_qat_processes_are_killed_and_come_back(tmp_path, synchronous, tf2):
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    steps = STEPS // 2 if tf2 else STEPS  # (of a larger model, each takes longer)
    more = ["train_config.sync_replicas={}".format(str(synchronous).lower())]
    more.append("train_config.replicas_to_aggregate={}".format(2 if synchronous else 1))
    config = tiny_detector.write_config(folder, True, "qat", steps, more, tf2=tf2)
    program = ["-m", "od_qat", "train", "--save_interval_secs=1", "--pipeline_config_path", config]
    trained = Cluster(folder, lambda train_dir: program + ["--train_dir", train_dir])
    before = _kill_and_restart(trained)
    assert 2 <= before < steps
    assert "resuming from" in trained.log("master")
    assert "/{}-{}".format("ckpt" if tf2 else "model.ckpt", before) in trained.log("master")
    assert trained.step() >= steps
    _require_everything(config, trained.train_dir, folder)


@pytest.mark.long
def test_upstreams_command_reads_the_same_tf_config(tmp_path):
    """But for its parameter server, which nobody tells that training has ended."""
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    config = tiny_detector.write_config(folder, True, "qat", STEPS)
    program = [
        "-m",
        "od_qat",
        "run",
        "object_detection.legacy.train",
        "--",
        "--pipeline_config_path=" + config,
    ]
    trained = Cluster(folder, lambda train_dir: program + ["--train_dir=" + train_dir])
    try:
        trained.begin(until_step=0)
        for job in ("master", "worker"):
            trained.wait_for(lambda job=job: trained.processes[job].poll() == 0, "end of the " + job)
        assert trained.processes["ps"].poll() is None
    finally:
        trained.close()
    assert trained.steps_of("worker") and trained.steps_of("master")
    assert trained.step() >= STEPS
    _require_everything(config, trained.train_dir, folder)


def _require_everything(config, train_dir, folder):
    """Evaluation and export find every key, and the ranges have moved."""
    commands.evaluate(config, train_dir, os.path.join(folder, "eval"), run_once=True)
    path = commands.export(config, train_dir, os.path.join(folder, "export"))
    assert os.path.getsize(path)
    prefix = checkpoints.latest(train_dir)
    values = tf.train.load_checkpoint(prefix)
    keys = {name: name for name in values.get_variable_to_shape_map()}
    if object_based.is_object_based(prefix):
        keys = object_based.extra_keys(prefix)
    assert not any(name.startswith(("clone_", "worker", "master")) for name in keys)
    maxima = [values.get_tensor(key) for name, key in keys.items() if name.endswith("act_quant/max")]
    assert maxima and not all(np.all(value == 6.0) for value in maxima)


@pytest.mark.long_on_tf1
@pytest.mark.zoo
def test_clones_train_and_their_checkpoint_is_a_single_models(tmp_path):
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    config = tiny_detector.write_config(folder, True, "qat", steps=3)
    train_dir = os.path.join(folder, "train")
    with sessions.all_plain():
        result = commands.train(config, train_dir, num_clones=2, clone_on_cpu=True, seed=1)
    assert result.global_step == 3
    _require_everything(config, train_dir, folder)
    if not tiers.ALL:
        return
    # And on: one device takes up what two have begun.
    more = ["train_config.num_steps=4"]
    assert commands.train(config, train_dir, overrides=more, seed=1).global_step == 4


def test_clones_with_synchronous_workers_are_refused(tmp_path):
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    config = tiny_detector.write_config(folder, True, "qat", more=["train_config.sync_replicas=true"])
    with pytest.raises(ConfigError, match="sync_replicas.*one clone.*num_clones=2"):
        commands.train(config, os.path.join(folder, "train"), num_clones=2, clone_on_cpu=True)


def test_a_synchronous_step_of_no_gradients_is_refused():
    task = TrainingTask(Schedule(batch_size=4, sync_replicas=True, replicas_to_aggregate=0))
    with pytest.raises(ConfigError, match="replicas_to_aggregate, found 0, allowed: 1 to .* workers, 2"):
        training_graph._clone_batch_size(task, num_clones=1, worker_replicas=2)


def test_images_that_clones_cannot_share_are_left_out(capsys):
    task = TrainingTask(Schedule(batch_size=8, sync_replicas=False, replicas_to_aggregate=1))
    assert training_graph._clone_batch_size(task, num_clones=2, worker_replicas=1) == 4
    assert not capsys.readouterr().err
    assert training_graph._clone_batch_size(task, num_clones=3, worker_replicas=1) == 2
    said = capsys.readouterr().err
    assert "a step has 6 images instead of train_config.batch_size (8), 2 for each of 3 clones" in said


def _servers(*jobs):
    """The servers of a cluster in this process: {job: [its tasks']}, and what each job has of addresses."""
    sockets = [(job, socket.socket()) for job in jobs]
    addresses = {}
    for job, one in sockets:
        one.bind(("127.0.0.1", 0))
        addresses.setdefault(job, []).append("127.0.0.1:{}".format(one.getsockname()[1]))
    for _, one in sockets:
        one.close()
    return {
        job: [tf.train.Server(addresses, job_name=job, task_index=task) for task in range(len(of_job))]
        for job, of_job in addresses.items()
    }


def _on_servers(server, graph):
    """The values that the variables of a graph have on the parameter servers now, by name."""
    config = sessions.plain_config(tf.ConfigProto(allow_soft_placement=True))
    with tf.Session(server.target, graph, config) as session:
        return session.run({v.op.name: v for v in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)})


@needs_tf2
def test_processes_share_the_variables_of_a_keras_model(tmp_path):
    """Chief, worker and a second chief, one after the other; two parameter servers hold the variables."""
    servers = _servers("ps", "ps", "master", "worker")
    places = {
        job: training_session.Place(servers[job][0].target, 0, 2, 2, job + "/task:0", job == "master")
        for job in ("master", "worker")
    }
    train_dir, elsewhere = str(tmp_path / "train"), str(tmp_path / "elsewhere")

    graph = worker.train(places["master"], train_dir, steps=2, model=worker.keras_net)
    devices = {variable.device for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}
    assert {device.replace("/device:CPU:0", "") for device in devices} == {"/job:ps/task:0", "/job:ps/task:1"}
    of_chief = _on_servers(servers["ps"][0], graph)
    prefix = checkpoints.latest(train_dir)
    assert os.path.basename(prefix) == "ckpt-2"
    reader = tf.train.load_checkpoint(prefix)
    for key, name in (("0/kernel", "first/kernel"), ("1/moving_mean", "first_norm/moving_mean")):
        key = "model/net/layer_with_weights-{}/.ATTRIBUTES/VARIABLE_VALUE".format(key)
        np.testing.assert_array_equal(reader.get_tensor(key), of_chief[name], name)
    ranges = [name for name in of_chief if name.endswith("act_quant/max")]
    assert ranges and set(ranges) <= set(object_based.extra_keys(prefix))

    graph = worker.train(places["worker"], elsewhere, steps=4, model=worker.keras_net)
    of_worker = _on_servers(servers["ps"][0], graph)
    assert set(of_worker) == set(of_chief) and of_worker["global_step"] == 4
    for name in ["first/kernel", "first_norm/moving_mean"] + ranges:
        assert not np.array_equal(of_worker[name], of_chief[name]), name
    assert not os.path.exists(elsewhere)

    # The chief comes back: what it has saved counts.
    graph = worker.train(places["master"], train_dir, steps=3, model=worker.keras_net)
    again = _on_servers(servers["ps"][0], graph)
    assert again["global_step"] == 3 and os.path.basename(checkpoints.latest(train_dir)) == "ckpt-3"
    assert not np.array_equal(again["first/kernel"], of_worker["first/kernel"])


@needs_tf2
@pytest.mark.parametrize(
    "options, devices",
    [
        (dict(num_clones=1), {"/device:GPU:0"}),
        (dict(num_clones=2), {"/device:CPU:0"}),
        (
            dict(num_ps_tasks=2, num_replicas=2, worker_job_name="worker/task:0"),
            {"/job:ps/task:0/device:CPU:0", "/job:ps/task:1/device:CPU:0"},
        ),
    ],
)
def test_the_place_of_the_variables_of_keras(monkeypatch, options, devices):
    from deployment import model_deploy

    monkeypatch.setattr(halves, "_is_tf2", True)
    deploy = model_deploy.DeploymentConfig(**options)
    with tf.Graph().as_default(), keras_models.variables_of_one_model(deploy):
        with tf.name_scope(deploy.clone_scope(0)), tf.device(deploy.clone_device(0)):
            tf.keras.layers.Dense(2, name="head")(tf.zeros([1, 3]))
        variables = tf.global_variables()
    assert [variable.op.name for variable in variables] == ["head/kernel", "head/bias"]
    assert {variable.device for variable in variables} == devices


@needs_tf2
def test_the_trainer_puts_a_keras_model_on_parameter_servers(tmp_path):
    tiny_detector.write_data(str(tmp_path))
    config = pipeline.load(tiny_detector.write_config(str(tmp_path), False, "float", tf2=True))
    place = training_session.Place("", 1, 2, 2, "worker/task:0", False)
    deploy = training_graph.deployment(place, 1, False)
    with halves.active(config), tf.Graph().as_default():
        inputs, model = models.input_fn(config.train_input_reader), models.model_fn(config, is_training=True)
        task = DetectorTask(inputs, model, config.train_config)
        step = training_graph.build(task, deploy, None, place, StopSignals()).train_op
        assert keras_models.of_graph() is not None
        devices = {variable.device for variable in tf.global_variables()}
        used = live.leading_to(tf.get_default_graph(), [step])
        reads = [op.inputs[0].op.name for op in used if op.type == "ReadVariableOp"]
    assert {tf.DeviceSpec.from_string(device).job for device in devices} == {"ps"}
    assert {tf.DeviceSpec.from_string(device).task for device in devices} == {0, 1}
    assert len(reads) > 200 and sorted(reads) == sorted(set(reads))


class TestTfConfig(object):
    PS, CHIEF, WORKER = ["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]

    def join(self, cluster_, task="master", index=0):
        text = json.dumps({"cluster": cluster_, "task": {"type": task, "index": index}})
        return cluster.join({"TF_CONFIG": text})

    def test_none_is_a_process_alone(self):
        assert cluster.join({}) == training_session.Place()
        assert cluster.join({"TF_CONFIG": "{}"}).is_chief

    @pytest.mark.parametrize(
        "jobs, task, index, says",
        [
            ({"chief": CHIEF, "ps": PS}, "chief", 0, "chief is called master"),
            ({"master": CHIEF, "worker": WORKER}, "master", 0, "at least one ps"),
            ({"ps": PS, "worker": WORKER}, "worker", 0, "one master"),
            ({"ps": PS, "master": CHIEF}, "worker", 0, "task 0 of worker"),
            ({"ps": PS, "master": CHIEF, "worker": WORKER}, "worker", 1, "task 1 of worker"),
        ],
    )
    def test_what_is_no_cluster_is_named(self, jobs, task, index, says):
        with pytest.raises(ConfigError, match="TF_CONFIG.*" + says):
            self.join(jobs, task, index)

    def test_a_job_that_is_no_list_is_named(self):
        with pytest.raises(ConfigError, match="TF_CONFIG.*found ps: '127.0.0.1:1', allowed: a list"):
            self.join({"ps": self.PS[0], "master": self.CHIEF})

    def test_an_address_that_cannot_be_served_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            used = "127.0.0.1:{}".format(taken.getsockname()[1])
            for address in (used, "localhost"):
                with pytest.raises(
                    ConfigError, match="server: at master/task:0 at {}, found".format(address)
                ):
                    self.join({"ps": self.PS, "master": [address]})

    @pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps"}}'])
    def test_what_is_no_json_is_named(self, text):
        with pytest.raises(ConfigError, match="TF_CONFIG.*JSON"):
            cluster.join({"TF_CONFIG": text})


@pytest.mark.long_on_tf1
def test_a_parameter_server_ends_soon_after_the_chief(monkeypatch, capsys):
    """A worker that was killed and did not come back does not keep it."""
    monkeypatch.setattr(training_session, "_LAST_STEPS_SECS", 2)
    server = tf.train.Server({"ps": ["127.0.0.1:{}".format(_free_port())]}, job_name="ps", task_index=0)
    with tf.Graph().as_default(), tf.Session(server.target) as session:
        session.run(training_session._ended(0, chief=True).enqueue(True))
    started = time.time()
    training_session.serve(server, 0, worker_replicas=3)
    assert 1 < time.time() - started < 60
    assert "1 of 3 workers" in capsys.readouterr().err


@pytest.mark.long_on_tf1
def test_a_process_that_finds_training_ended_lets_the_parameter_server_end(monkeypatch, capsys):
    """A chief that was killed between its last checkpoint and its last word, and is started again."""
    monkeypatch.setattr(training_session, "_TELL_SECS", 60)
    jobs = {job: ["127.0.0.1:{}".format(_free_port())] for job in ("ps", "master")}
    servers = {job: tf.train.Server(jobs, job_name=job, task_index=0) for job in jobs}
    served = threading.Thread(target=training_session.serve, args=(servers["ps"], 0, 1), daemon=True)
    served.start()
    chief = training_session.Place(servers["master"].target, 0, 1, 1, "master/task:0", True)
    training_session.tell_servers(chief)
    served.join(60)
    assert not served.is_alive()
    assert "1 of 1 workers" in capsys.readouterr().err


def test_nobody_waits_for_a_parameter_server_that_is_gone(monkeypatch):
    monkeypatch.setattr(training_session, "_TELL_SECS", 1)
    jobs = {job: ["127.0.0.1:{}".format(_free_port())] for job in ("ps", "master")}
    server = tf.train.Server(jobs, job_name="master", task_index=0)
    started = time.time()
    training_session.tell_servers(training_session.Place(server.target, 0, 1, 1, "master/task:0", True))
    assert time.time() - started < 30


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
