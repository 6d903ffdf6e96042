"""Processes forked from one that has loaded the heavy modules, so that a start costs no import."""

import multiprocessing

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.server.test_crash", "fedlatent.client.resident"])
