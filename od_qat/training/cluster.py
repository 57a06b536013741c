"""TF_CONFIG tells each process of a cluster its role. It is read as the OD API's legacy/train.py reads it.

    {"cluster": {"ps": ["host0:2222"], "master": ["host1:2222"], "worker": ["host2:2222"]},
     "task": {"type": "worker", "index": 0}}

The chief is called `master`; it is a worker too.
"""

import json
import os
from typing import Mapping, Optional, Sequence

from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.training.session import Place, serve

_VARIABLE = "TF_CONFIG"
_JOBS = ("master", "ps", "worker")


def join(environment: Optional[Mapping[str, str]] = None) -> Optional[Place]:
    """Takes this process's place in the cluster. A parameter server returns only when training has ended.

    Args:
      environment: the environment variables; by default those of the process.

    Returns:
      the place of a worker; Place() if there is no cluster; None for a parameter server that has ended.

    Raises:
      ConfigError: if TF_CONFIG does not describe such a cluster.
    """
    text = (os.environ if environment is None else environment).get(_VARIABLE, "")
    try:
        config = json.loads(text or "{}")
        cluster = dict(config.get("cluster") or {})
        task = dict(config.get("task") or {"type": "master", "index": 0})
        job, index = task["type"], int(task["index"])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _bad(text, "JSON with a cluster and a task, {}".format(type(error).__name__)) from error
    if not cluster:
        return Place()
    unknown = sorted(set(cluster) - set(_JOBS))
    if unknown:
        raise _bad(
            "the job {!r}".format(unknown[0]), "{}; the chief is called master".format(", ".join(_JOBS))
        )
    if not cluster.get("ps") or len(cluster.get("master", ())) != 1:
        raise _bad(
            "{} ps, {} master".format(len(cluster.get("ps", ())), len(cluster.get("master", ()))),
            "at least one ps and one master",
        )
    if job not in cluster or not 0 <= index < len(cluster[job]):
        raise _bad("task {} of {}".format(index, job), "a task of the cluster")
    server = _server(cluster, job, index)
    replicas = len(cluster.get("worker", ())) + 1
    if job == "ps":
        serve(server, index, replicas)
        return None
    return Place(
        server.target,
        index,
        replicas,
        len(cluster["ps"]),
        "{}/task:{}".format(job, index),
        job == "master",
        server,
    )


def _server(cluster: Mapping[str, Sequence[str]], job: str, index: int):
    for name, tasks in cluster.items():
        if not isinstance(tasks, list) or not all(isinstance(address, str) for address in tasks):
            raise _bad("{}: {!r}".format(name, tasks), "a list of host:port for each job")
    try:
        return tf.train.Server(tf.train.ClusterSpec(cluster), protocol="grpc", job_name=job, task_index=index)
    except (tf.errors.OpError, ValueError) as error:
        raise ConfigError(
            "cannot start this process's TensorFlow server",
            where="{}/task:{} at {}".format(job, index, cluster[job][index]),
            found=getattr(error, "message", str(error)).splitlines()[0],
            allowed="host:port, where the port is free on this machine, and host:port of all others",
            fix="end what uses the port, or give another in {}, the same in all processes".format(_VARIABLE),
        ) from error


def _bad(found: str, allowed: str) -> ConfigError:
    return ConfigError(
        "TF_CONFIG describes no cluster for training",
        where="the environment's " + _VARIABLE,
        found=found,
        allowed=allowed,
        fix="see docs/distributed.md, or unset it to train alone",
    )
