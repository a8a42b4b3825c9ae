"""The queue processor: it scans a queue, and sends what is due over several connections.

docs/explanation/design.rst draws the walk of a mail, with every thread in it. What decides when the
relay may be used, the circuit breaker and the rate limiter, is in ``sending``.

==================== ============================================================
``processor``        scans, and plans scans, syncs and the end
``options``          its options, and their default values
``run``              what the parts of one run share
``claims``           claims of due mail, one by one
``loop``             all connections by SMTP and LMTP, in one thread
``loop_worker``      a worker of the loop: one connection at a time
``loop_connection``  a connection of the loop, which never blocks
``token_request``    the wait for an access token, in front of a connection
``loop_roles``       what a connection needs of the loop, and of its worker
``worker_pool``      for mailers that block: a thread for each connection
``active_queue``     the tickets that the workers share, in memory
``tracked_claim``    claims that report when they are due again
``single_pass``      the scan of ``psendmail-qp --once``
``heartbeat``        shows in the queue that a run is alive
``thread``           ``mail.processor = thread``
==================== ============================================================
"""
