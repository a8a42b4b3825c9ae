"""The queue on disk. Each module has one job; those above use those below:

================  ==================================================================
``queue``         MaildirQueue: put, scan, claim and the rest of IScannableQueue
``staging``       the two-phase put: ``tmp/``, then ``new/``
``late_sync``     the sync of ``new/`` that no commit waits for
``scan``          what is due, in order, without opening files; reading ahead
``claim``         a claimed mail: letters in place, moves between folders
``common_path``   the same for most mail: new, due, one recipient; straight code
``recovery``      finish what dead processes left in ``tmp/``; damaged files
``legacy``        adopt mail of zope.sendmail and repoze.sendmail
``legacy_head``   its headers, written as any relay takes them
``browser``       list, read, retry, hold, release and drop mails, for people
``dead_letters``  remove old dead letters from ``failed/``
``history``       the attempts of a mail, as text for people, in ``reasons/``
``large_text``    load a mail; a large message stays in its file
``format``        the file: envelope block and message
``first_line``    its first line: version, lengths, checksums, what the text is like
``options``       the fixed lines of the block: id, sender, options
``reply_slot``    the part of the block with replies of pending events
``filename``      the name of a file: priority, due time, attempt, id
``wakeup``        the FIFO that wakes a sleeping processor
``heartbeat``     the file by which a queue processor shows that it runs
``probes``        prove that locks work and that an outcome can be recorded
``files``         open, lock, write, sync, rename: the operations on the file system
``folders``       the folders: opened, checked, and checked again while they are in use
``recognition``   recognize a folder that is no queue
``permissions``   which users may use the queue
``parents``       the folders above the queue: who may replace it
``directory``     an open folder, in which no link is followed
``users``         names of users and groups
================  ==================================================================
"""
