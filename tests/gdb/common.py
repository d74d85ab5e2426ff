# Loaded first by every script: checks that count their failures, which become gdb's exit code.
import gdb
import os
import traceback

failures = 0


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


def value(expression):
    return int(gdb.parse_and_eval(expression))


def blocked():
    """The thread that waits for the lock. It may take some rounds of the other until it does."""
    for _ in range(100):
        for thread in gdb.selected_inferior().threads():
            if "blocked" in (thread.details or ""):
                return thread
        run("continue")
    raise RuntimeError("no thread waits")


def main(body):
    try:
        gdb.execute("set pagination off")
        gdb.execute("set confirm off")
        gdb.execute("set debuginfod enabled off")
        gdb.execute("target remote " + os.environ["TASKVISOR_GDB"])
        body()
    except BaseException:
        traceback.print_exc()
        check(False, "no exception")
    gdb.execute("quit %d" % failures)
