"""The queue processor: it scans a queue, and sends what is due over several connections.

==================== ============================================================
``processor``        the loop: scan, claim, send, dispatch events
``options``          its options, and their default values
``worker_pool``      one thread for each connection
``active_queue``     the tickets that the workers share, in memory
``rate_limiter``     ``mail.rate``
``circuit_breaker``  pauses while the relay is unavailable
``concurrency``      how many workers send at the same time
``tracked_claim``    claims that tell the pool when they are due again
``single_pass``      the scan of ``psendmail-qp --once``
``thread``           ``mail.processor = thread``
==================== ============================================================
"""
