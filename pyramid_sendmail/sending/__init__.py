"""One attempt: send claimed mail through a session, and record what the relay answered.

``connection`` keeps a mailer's session open, ``attempt`` sends the mail of several claims over it,
``outcome`` classifies each answer, writes it to the queue and dispatches the events.
"""
