#!/usr/bin/env python3
"""Decodes a trace with the protobuf definitions that Perfetto publishes (PyPI: perfetto), checks it, and prints what is in it.

    PYTHONPATH=target/perfetto tests/check_perfetto.py FILE

Fails with the first thing that is not as Perfetto's own tracks need it. The trace processor itself is not used: it is a binary
that its Python package downloads when it runs.
"""
import collections
import json
import sys

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

trace = perfetto.Trace()
with open(sys.argv[1], "rb") as file:
    trace.ParseFromString(file.read())

events = collections.Counter()
switches = collections.defaultdict(list)
names = {}
tracks = {}
track_events = collections.defaultdict(list)
woken, ran, comms = set(), set(), collections.defaultdict(set)

for packet in trace.packet:
    for thread in packet.process_tree.threads:
        names[thread.tid] = thread.name
    if packet.HasField("track_descriptor"):
        tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
    if packet.HasField("track_event"):
        assert packet.trusted_packet_sequence_id, "a track event of no sequence"
        track_events[packet.track_event.track_uuid].append((packet.timestamp, packet.track_event))
    for event in packet.ftrace_events.event:
        kind = event.WhichOneof("event")
        events[kind] += 1
        if kind == "sched_switch":
            switches[packet.ftrace_events.cpu].append(event)
        elif kind in ("sched_waking", "sched_wakeup_new"):
            woken.add(getattr(event, kind).pid)

for cpu, of_cpu in switches.items():
    stamps = [event.timestamp for event in of_cpu]
    assert stamps == sorted(stamps), f"CPU {cpu}: switches run backwards"
    for before, after in zip(of_cpu, of_cpu[1:]):
        one, two = before.sched_switch, after.sched_switch
        assert one.next_pid == two.prev_pid, f"CPU {cpu}: {one.next_pid} came, {two.prev_pid} left at {after.timestamp}"
    for event in of_cpu:
        switch = event.sched_switch
        assert event.pid == switch.prev_pid and switch.prev_comm and switch.next_comm, event
        # A task may take its last name after it has come for the last time, so both ends count.
        comms[switch.prev_pid].add(switch.prev_comm)
        comms[switch.next_pid].add(switch.next_comm)
        ran.add(switch.next_pid)

assert ran - {0} <= woken, f"tasks that ran and were never queued: {ran - {0} - woken}"
for tid, name in names.items():
    assert tid not in comms or name in comms[tid], f"task {tid}: {name} in the tree, {comms[tid]} in switches"

values = collections.defaultdict(list)
slices = collections.Counter()
for uuid, of_track in track_events.items():
    assert uuid in tracks, f"events of track {uuid}, which nobody described"
    depth = 0
    for stamp, event in sorted(of_track, key=lambda pair: pair[0]):
        if event.type == perfetto.TrackEvent.TYPE_COUNTER:
            assert event.counter_value >= 0, f"{tracks[uuid]}: {event.counter_value}"
            values[tracks[uuid]].append(event.counter_value)
        elif event.type == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.name, f"{tracks[uuid]}: a slice without a name"
            depth += 1
            slices[tracks[uuid]] += 1
        elif event.type == perfetto.TrackEvent.TYPE_SLICE_END:
            depth -= 1
        assert depth in (0, 1), f"{tracks[uuid]}: slices overlap at {stamp}"

print(json.dumps({
    "events": events,
    "switches": {str(cpu): len(of_cpu) for cpu, of_cpu in switches.items()},
    "threads": sorted(names.values()),
    "comms": sorted(set().union(*comms.values())),
    "slices": slices,
    "counters": {name: max(of_track) for name, of_track in values.items()},
}))
