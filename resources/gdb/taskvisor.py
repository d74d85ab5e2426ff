"""gdb commands for guests of Taskvisor: source resources/gdb/taskvisor.py

task-list               the guest's tasks, as `monitor tasks` tells them
task-runqueue           the tasks that are on each CPU or wait for it
task-vmas               what is mapped in the selected thread's address space
task-waiters            the threads that wait, and for what
task-where              one line for each thread: where it is, in its program if it has one
task-only ID LOCATION   a breakpoint for one task
"""

import gdb


class TaskList(gdb.Command):
    """The guest's tasks: state, CPU, times, and what they wait for."""

    def __init__(self):
        super().__init__("task-list", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        gdb.execute("monitor tasks", from_tty)


class Monitor(gdb.Command):
    """What `monitor` says of the selected thread's guest."""

    def __init__(self, name, line):
        super().__init__(name, gdb.COMMAND_STATUS)
        self.line = line

    def invoke(self, argument, from_tty):
        gdb.execute("monitor " + self.line, from_tty)


class TaskWaiters(gdb.Command):
    """The threads that wait, and for what."""

    def __init__(self):
        super().__init__("task-waiters", gdb.COMMAND_STATUS)

    def invoke(self, argument, from_tty):
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.ptid[1]):
            if "blocked" in (thread.details or ""):
                print('%s "%s" (%s)' % (thread.ptid[1], thread.name, thread.details))


class TaskWhere(gdb.Command):
    """For each thread its innermost frame, and the innermost one of its program."""

    def __init__(self):
        super().__init__("task-where", gdb.COMMAND_STATUS)

    @staticmethod
    def place(frame):
        sal = frame.find_sal()
        line = " at %s:%d" % (sal.symtab.filename, sal.line) if sal.symtab else ""
        return "%#x %s%s" % (frame.pc(), frame.name() or "??", line)

    def invoke(self, argument, from_tty):
        selected = gdb.selected_thread()
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.ptid[1]):
            thread.switch()
            frame = gdb.newest_frame()
            places = [self.place(frame)]
            # Below here is the user half of every address space.
            while frame is not None and frame.pc() >= 1 << 47:
                frame = frame.older()
            if frame is not None and frame != gdb.newest_frame():
                places.append(self.place(frame))
            print('%s "%s" (%s)' % (thread.ptid[1], thread.name, thread.details))
            for place in places:
                print("    " + place)
        if selected is not None:
            selected.switch()


class TaskOnly(gdb.Command):
    """task-only ID EXPRESSION...: a breakpoint that stops for one task; the VMM looks, so others lose no time."""

    def __init__(self):
        super().__init__("task-only", gdb.COMMAND_BREAKPOINTS, gdb.COMPLETE_LOCATION)

    def invoke(self, argument, from_tty):
        words = argument.split(None, 1)
        if len(words) != 2 or not words[0].isdigit():
            raise gdb.GdbError("task-only TASK LOCATION, such as: task-only 7 work")
        gdb.execute("break %s if $task_id == %s" % (words[1], words[0]), from_tty)


TaskList()
Monitor("task-runqueue", "runqueues")
Monitor("task-vmas", "maps")
TaskWaiters()
TaskWhere()
TaskOnly()
