"""One attempt: send claimed mail through a session, and record what the relay answered. And what
decides when the relay may be used, for the queue processor and for direct delivery.

====================  ==========================================================
``attempt``           sends the mail of several claims over a session
``relay_connection``  a mailer, and the session that is kept open with it
``outcome``           classifies each answer, records it, dispatches the events
``circuit_breaker``   pauses while the relay is unavailable
``refusals``          a relay that refuses every mail in the same words
``rate_limiter``      ``mail.rate``, and the pace of a relay that throttles
``throttling``        a relay that says that mail comes too fast
``wrapped_claim``     what a claim around another one passes on
====================  ==========================================================
"""
