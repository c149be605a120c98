"""A read-only view of an instance, which every tool uses. See :class:`Instance`."""

from shmdriver.observe.blame import Diagnosis, diagnose
from shmdriver.observe.instance import Instance
from shmdriver.observe.latency import LatencyStatus
from shmdriver.observe.objects import default_instance, instance_names
from shmdriver.observe.process import ProcessStatus, process_status
from shmdriver.observe.rates import Rates
from shmdriver.observe.records import (
    BackPressure,
    ClientStatus,
    DriverStatus,
    EpochStatus,
    ErrorRecord,
    EventRecord,
    GateStatus,
    LeaseStatus,
    StreamStatus,
)

__all__ = [
    "BackPressure",
    "ClientStatus",
    "Diagnosis",
    "DriverStatus",
    "EpochStatus",
    "ErrorRecord",
    "EventRecord",
    "GateStatus",
    "Instance",
    "LatencyStatus",
    "LeaseStatus",
    "ProcessStatus",
    "Rates",
    "StreamStatus",
    "default_instance",
    "diagnose",
    "instance_names",
    "process_status",
]
