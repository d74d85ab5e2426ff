# Kernel tasks, idle CPUs and threads on no CPU: seen, unwound, stepped.
def begin():
    """to where two threads wait"""
    run("add-symbol-file " + os.environ["TASKVISOR_PROGRAM"])
    run("break marker")
    run("continue")
    run("delete")


def idle():
    """each CPU has its idle task"""
    found = tasks("idle task")
    equal(len(found), int(os.environ["TASKVISOR_VCPUS"]), "one for each vCPU")
    for thread in found:
        thread.switch()
        equal(value("$mode"), 0, "in the kernel")
        check(gdb.newest_frame().is_valid(), "it has frames")


def every_thread():
    """thread apply all bt has something to say of each"""
    text = run("thread apply all bt 40")
    equal(text.count("#0 "), len(threads()), "a frame of each")
    check("waiter" in text and "pthread_mutex_lock" in text, "the program's frames below the kernel's")
    check("Backtrace stopped" not in text or "previous frame" not in text.split("waiter")[0][-200:], "not cut short")


def step_of_a_waiting_thread():
    """a step of a thread on no CPU ends when it has one, or by Ctrl-C; the guest isn't stuck"""
    waiting = [thread for thread in tasks("blocked") if thread.ptid[1] != 1]
    waiting[0].switch()
    task = waiting[0].ptid[1]
    run("maint flush register-cache")
    check("switch" in (run("bt 4")), "it stands in the switch")
    # The lock is given free by thread 1, which runs on meanwhile.
    run("stepi")
    equal(gdb.selected_thread().ptid[1], task, "the step is told for its thread")


import os

main(begin, idle, every_thread, step_of_a_waiting_thread, to_the_end)
