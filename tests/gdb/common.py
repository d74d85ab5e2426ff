# Loaded first by every script: checks that count their failures, which become gdb's exit code.
import gdb
import os
import signal
import threading
import traceback

failures = 0
ended = []
signals = []
gdb.events.exited.connect(lambda event: ended.append(getattr(event, "exit_code", None)))
gdb.events.stop.connect(lambda event: signals.append(getattr(event, "stop_signal", None)))


def check(good, what):
    global failures
    print(("ok: " if good else "FAILED: ") + what)
    if not good:
        failures += 1


def equal(found, wanted, what):
    check(found == wanted, "%s: %r, wanted %r" % (what, found, wanted))


def run(command):
    text = gdb.execute(command, to_string=True)
    print("(gdb) %s\n%s" % (command, text))
    return text


def refused(command, why):
    """What can't be done says why and leaves the session as it was."""
    try:
        run(command)
        check(False, "%s is refused" % command)
    except gdb.error as error:
        check(why in str(error), "%s is refused: %s" % (command, error))


def value(expression):
    return int(gdb.parse_and_eval(expression))


def name():
    return gdb.newest_frame().name()


def threads():
    return sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.ptid[1])


def tasks(text):
    """The threads whose name or details say this."""
    return [thread for thread in threads() if text in "%s %s" % (thread.name, thread.details)]


def blocked():
    """The thread that waits for the lock. It may take some rounds of the other until it does."""
    for _ in range(100):
        for thread in threads():
            if "blocked" in (thread.details or ""):
                return thread
        run("continue")
    raise RuntimeError("no thread waits")


def interrupted_continue():
    """Continues, and types Ctrl-C as soon as the guest runs."""
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    return run("continue")


def to_the_end(code=7):
    """Nothing of ours is left: the program ends as if nobody had looked."""
    run("delete")
    run("continue")
    equal(ended, [code], "the program's end is told with its exit code")


def attach():
    gdb.execute("set pagination off")
    gdb.execute("set confirm off")
    gdb.execute("set debuginfod enabled off")
    gdb.execute("target remote " + os.environ["TASKVISOR_GDB"])


def main(*cases):
    """Runs the cases of one guest, one after the other. One that fails on the way doesn't keep the next from being tried."""
    for n, case in enumerate((attach,) + cases):
        print("case %d: %s" % (n, case.__doc__ or case.__name__))
        try:
            case()
        except BaseException:
            traceback.print_exc()
            check(False, "no exception in %s" % case.__name__)
    gdb.execute("quit %d" % failures)
