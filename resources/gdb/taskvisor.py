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
    """For each thread where it is, and where its program is. Nothing is unwound: the VMM knows both places."""

    def __init__(self):
        super().__init__("task-where", gdb.COMMAND_STATUS)

    @staticmethod
    def function(pc):
        try:
            block = gdb.block_for_pc(pc)
        except RuntimeError:
            block = None
        while block is not None and block.function is None:
            block = block.superblock
        if block is not None:
            return block.function.print_name
        symbol = gdb.execute("info symbol %#x" % pc, to_string=True)
        return "??" if symbol.startswith("No symbol") else symbol.split(" in section")[0].strip()

    @classmethod
    def place(cls, pc):
        sal = gdb.find_pc_line(pc)
        line = " at %s:%d" % (sal.symtab.filename, sal.line) if sal.symtab else ""
        return "%#x %s%s" % (pc, cls.function(pc), line)

    def invoke(self, argument, from_tty):
        threads = {t.ptid[1]: t for t in gdb.selected_inferior().threads()}
        for line in gdb.execute("monitor where", to_string=True).splitlines():
            ident, *places = (int(word, 0) for word in line.split())
            if ident in threads:
                print('%s "%s" (%s)' % (ident, threads[ident].name, threads[ident].details))
                for pc in places:
                    print("    " + self.place(pc))


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
