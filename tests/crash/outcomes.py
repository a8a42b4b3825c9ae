"""What becomes of each system call that fails: one block an operation, one line a call.

``phase: call place [#occurrences]: outcome; ERRORS: outcome of these``

=============== ===================================================================================
quiet           nothing is raised
QueueError      it is raised, with the queue's name and a remedy
OSError         the interface says that this call may raise it, or its caller takes care of it
DamagedMail     the file may not be opened by this user, and was put aside
kept            what became of the mail could not be recorded: its claim is kept, nobody else gets
                it, and it is recorded at the next try
done            afterwards the disk is as if nothing had failed
as before       afterwards the disk is as before the operation
between         neither: the next process brings it to its end, as after a crash
CRITICAL        it is said at that level
=============== ===================================================================================

A kernel does not give every error to every call (no flock answers ENOSPC): all are tried all the
same. ENOENT for a file that is there is what no local file system answers; it is believed, as that
somebody has removed it.
"""

# ruff: noqa: E501

from __future__ import annotations

__all__ = ['NEVER', 'OUTCOMES']

NEVER = {
    'link': 'a rename publishes, also where the file system has no links',
    'fdatasync': 'a new file needs its length on disk as well',
    'ftruncate': 'a file never changes its length',
    'posix_fallocate': 'the vote writes every octet that is ever needed',
}
"""Calls that the queue does not make, and why."""

OUTCOMES = {
    'enqueue one': """
put: lstat /: QueueError, as before; ENOENT: quiet, done
put: lstat tmp/: QueueError, as before; ENOENT: quiet, done
put: lstat new/: QueueError, as before; ENOENT: quiet, done
put: lstat cur/: QueueError, as before; ENOENT: quiet, done
put: lstat done/: QueueError, as before; ENOENT: quiet, done
put: lstat failed/: QueueError, as before; ENOENT: quiet, done
put: lstat reasons/: QueueError, as before; ENOENT: quiet, done
put: open tmp: QueueError, as before; ENOENT: quiet, done
put: flock tmp: QueueError, as before; ENOENT: QueueError, between
put: fstat tmp: QueueError, as before; ENOENT: QueueError, between
put: stat tmp: QueueError, as before; ENOENT: QueueError, between
put: lstat new: QueueError, as before; ENOENT: quiet, done
put: pwrite tmp: QueueError, as before
put: fsync tmp: QueueError, as before
publish: pwrite tmp: quiet, between
publish: rename tmp: quiet, between, CRITICAL; ENOENT: quiet, done
publish: open new/: quiet, done, CRITICAL
publish: fsync new/: quiet, done, CRITICAL
publish: close new/: quiet, done, CRITICAL
publish: flock tmp: quiet, done
publish: close tmp: quiet, done
publish: open trigger: quiet, done
publish: fstat trigger: quiet, done
publish: write trigger: quiet, done
publish: close trigger: quiet, done
""",
    'enqueue three': """
put: lstat /: QueueError, as before; ENOENT: quiet, done
put: lstat tmp/: QueueError, as before; ENOENT: quiet, done
put: lstat new/: QueueError, as before; ENOENT: quiet, done
put: lstat cur/: QueueError, as before; ENOENT: quiet, done
put: lstat done/: QueueError, as before; ENOENT: quiet, done
put: lstat failed/: QueueError, as before; ENOENT: quiet, done
put: lstat reasons/: QueueError, as before; ENOENT: quiet, done
put: open tmp #1: QueueError, as before; ENOENT: quiet, done
put: open tmp #2,3: QueueError, as before
put: flock tmp #1: QueueError, as before; ENOENT: QueueError, between
put: flock tmp #2,3: QueueError, as before
put: flock tmp #4,5: quiet, done
put: fstat tmp #1: QueueError, as before; ENOENT: QueueError, between
put: fstat tmp #2,3: QueueError, as before
put: stat tmp #1: QueueError, as before; ENOENT: QueueError, between
put: stat tmp #2,3: QueueError, as before
put: lstat new: QueueError, as before; ENOENT: quiet, done
put: pwrite tmp: QueueError, as before
put: posix_fadvise tmp: quiet, done
put: fsync tmp: QueueError, as before
put: close tmp: quiet, done
publish: pwrite tmp: quiet, between
publish: rename tmp: quiet, between, CRITICAL; ENOENT: quiet, done
publish: open new/: quiet, done, CRITICAL
publish: fsync new/: quiet, done, CRITICAL
publish: close new/: quiet, done, CRITICAL
publish: flock tmp: quiet, done
publish: close tmp: quiet, done
publish: open trigger: quiet, done
publish: fstat trigger: quiet, done
publish: write trigger: quiet, done
publish: close trigger: quiet, done
""",
    'discard one': """
discard: pwrite tmp: quiet, done
discard: unlink tmp: quiet, between
discard: flock tmp: quiet, done
discard: close tmp: quiet, done
""",
    'discard three': """
discard: pwrite tmp: quiet, done
discard: unlink tmp: quiet, between
discard: flock tmp: quiet, done
discard: close tmp: quiet, done
""",
    'doubt': """
doubt: flock tmp: quiet, done, CRITICAL
doubt: close tmp: quiet, done, CRITICAL
""",
    'recover unvoted': """
look: scandir tmp/: QueueError, as before; ENOENT: quiet, as before
look: readdir tmp/: QueueError, as before; ENOENT: quiet, as before
look: open tmp: quiet, as before
look: flock tmp #1: quiet, as before
look: flock tmp #2: quiet, done
look: fstat tmp: quiet, as before
look: stat tmp: quiet, as before
look: pread tmp: quiet, as before
look: listdir tmp/: quiet, as before
look: unlink tmp #1: quiet, as before; ENOENT: quiet, between
look: unlink tmp #2,3: quiet, between
look: close tmp: quiet, done
look: scandir done/: QueueError, done; ENOENT: quiet, done
look: readdir done/: QueueError, done; ENOENT: quiet, done
look: scandir new/: QueueError, done; ENOENT: quiet, done
look: readdir new/: QueueError, done; ENOENT: quiet, done
look: scandir cur/: QueueError, done; ENOENT: quiet, done
look: readdir cur/: QueueError, done; ENOENT: quiet, done
""",
    'recover doubtful': """
look: scandir tmp/: QueueError, as before; ENOENT: quiet, as before
look: readdir tmp/: QueueError, as before; ENOENT: quiet, as before
look: open tmp #1: quiet, as before
look: open tmp #2: quiet, as before; EPERM EACCES ENOENT: quiet, between, CRITICAL
look: open tmp #3: quiet, between, CRITICAL
look: flock tmp #1: quiet, as before
look: flock tmp #2: quiet, as before; ENOENT: quiet, between, CRITICAL
look: flock tmp #3,5,6: quiet, done, CRITICAL
look: flock tmp #4: quiet, between, CRITICAL
look: fstat tmp #1: quiet, as before
look: fstat tmp #2: quiet, as before; ENOENT: quiet, between, CRITICAL
look: fstat tmp #3: quiet, between, CRITICAL
look: stat tmp #1: quiet, as before
look: stat tmp #2: quiet, as before; ENOENT: quiet, between, CRITICAL
look: stat tmp #3: quiet, between, CRITICAL
look: pread tmp #1,2: quiet, as before
look: pread tmp #3,4: quiet, between, CRITICAL
look: listdir tmp/: quiet, as before
look: pwrite tmp #1: quiet, as before, CRITICAL
look: pwrite tmp #2,3: quiet, between, CRITICAL
look: rename tmp: quiet, between, CRITICAL; ENOENT: quiet, done, CRITICAL
look: close tmp: quiet, done, CRITICAL
look: open new/: quiet, done, CRITICAL
look: fsync new/: quiet, done, CRITICAL
look: close new/: quiet, done, CRITICAL
look: scandir done/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
look: readdir done/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
look: scandir new/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
look: readdir new/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
look: scandir cur/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
look: readdir cur/: QueueError, done, CRITICAL; ENOENT: quiet, done, CRITICAL
""",
    'recover committed': """
look: scandir tmp/: QueueError, as before; ENOENT: quiet, as before
look: readdir tmp/: QueueError, as before; ENOENT: quiet, as before
look: open tmp: quiet, as before
look: flock tmp #1: quiet, as before
look: flock tmp #2: quiet, done
look: fstat tmp: quiet, as before
look: stat tmp: quiet, as before
look: pread tmp: quiet, as before
look: listdir tmp/: quiet, as before
look: rename tmp #1: quiet, as before; ENOENT: quiet, done
look: rename tmp #2,3: quiet, between; ENOENT: quiet, done
look: open new/: quiet, done
look: fsync new/: quiet, done
look: close new/: quiet, done
look: close tmp: quiet, done
look: scandir done/: QueueError, done; ENOENT: quiet, done
look: readdir done/: QueueError, done; ENOENT: quiet, done
look: scandir new/: QueueError, done; ENOENT: quiet, done
look: readdir new/: QueueError, done; ENOENT: quiet, done
look: scandir cur/: QueueError, done; ENOENT: quiet, done
look: readdir cur/: QueueError, done; ENOENT: quiet, done
""",
    'claim and release': """
claim: open new: QueueError, done; EPERM EACCES: DamagedMail, between; ENOENT: quiet, done
claim: flock new: QueueError, done; ENOENT: quiet, done
claim: fstat new: QueueError, done; ENOENT: quiet, done
claim: stat new: QueueError, done; ENOENT: quiet, done
claim: pread new: QueueError, done
claim: pwrite new: QueueError, done
release: pwrite new: quiet, between
release: flock new: quiet, done
release: close new: quiet, done
""",
    'sealing': """
sealing: pwrite new: QueueError, between
""",
    'settle delivered': """
settle: pwrite new: quiet, kept, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: unlink done: quiet, between
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'settle partly': """
settle: pwrite new #1: quiet, kept, done
settle: pwrite new #2: quiet, between
settle: fsync new #1: quiet, kept, done
settle: fsync new #2: quiet, between
settle: open reasons #1: quiet, between; ENOENT: quiet, done
settle: open reasons #2: quiet, between
settle: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
settle: lstat reasons/ #2: quiet, between
settle: stat /: quiet, done
settle: mkdir reasons/: quiet, between
settle: chmod reasons/: quiet, between
settle: fstat reasons: quiet, between
settle: write reasons: quiet, between
settle: close reasons: quiet, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: rename cur: quiet, between; ENOENT: quiet, done
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'settle deferred': """
settle: pwrite new: quiet, kept, done
settle: open reasons #1: quiet, between; ENOENT: quiet, done
settle: open reasons #2: quiet, between
settle: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
settle: lstat reasons/ #2: quiet, between
settle: stat /: quiet, done
settle: mkdir reasons/: quiet, between
settle: chmod reasons/: quiet, between
settle: fstat reasons: quiet, between
settle: write reasons: quiet, between
settle: close reasons: quiet, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'settle failed': """
settle: pwrite new #1: quiet, kept, done
settle: pwrite new #2: quiet, between
settle: open reasons #1: quiet, between; ENOENT: quiet, done
settle: open reasons #2: quiet, between
settle: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
settle: lstat reasons/ #2: quiet, between
settle: stat /: quiet, done
settle: mkdir reasons/: quiet, between
settle: chmod reasons/: quiet, between
settle: fstat reasons: quiet, between
settle: write reasons: quiet, between
settle: close reasons: quiet, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: rename done: quiet, between; ENOENT: quiet, done
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'settle mixed': """
settle: pwrite new #1: quiet, kept, done
settle: pwrite new #2: quiet, between
settle: fsync new #1: quiet, kept, done
settle: fsync new #2: quiet, between
settle: open reasons #1: quiet, between; ENOENT: quiet, done
settle: open reasons #2: quiet, between
settle: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
settle: lstat reasons/ #2: quiet, between
settle: stat /: quiet, done
settle: mkdir reasons/: quiet, between
settle: chmod reasons/: quiet, between
settle: fstat reasons: quiet, between
settle: write reasons: quiet, between
settle: close reasons: quiet, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: rename cur: quiet, between; ENOENT: quiet, done
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'postpone': """
settle: pwrite new #1: quiet, kept, done
settle: pwrite new #2: quiet, between
settle: open reasons #1: quiet, between; ENOENT: quiet, done
settle: open reasons #2: quiet, between
settle: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
settle: lstat reasons/ #2: quiet, between
settle: stat /: quiet, done
settle: mkdir reasons/: quiet, between
settle: chmod reasons/: quiet, between
settle: fstat reasons: quiet, between
settle: write reasons: quiet, between
settle: close reasons: quiet, done
settle: rename new: quiet, kept, done; ENOENT: quiet, done
settle: rename done: quiet, between; ENOENT: quiet, done
settle: flock new: quiet, done
settle: close new: quiet, done
""",
    'report': """
attempt: scandir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: readdir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: scandir done/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir done/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir new/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir new/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: open done: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, as before
attempt: flock done #1: QueueError, as before; ENOENT: quiet, as before
attempt: flock done #2: quiet, done
attempt: fstat done: QueueError, as before; ENOENT: quiet, as before
attempt: stat done: QueueError, as before; ENOENT: quiet, as before
attempt: pread done: QueueError, as before
attempt: pwrite done: quiet, as before
attempt: rename done: quiet, between; ENOENT: quiet, done
attempt: close done: quiet, done
""",
    'resume before the dot': """
attempt: scandir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: readdir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: scandir done/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir done/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir new/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir new/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: open new: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, as before
attempt: flock new #1: QueueError, as before; ENOENT: quiet, as before
attempt: flock new #2: quiet, done
attempt: fstat new: QueueError, as before; ENOENT: quiet, as before
attempt: stat new: QueueError, as before; ENOENT: quiet, as before
attempt: pread new: QueueError, as before
attempt: pwrite new #1: QueueError, as before
attempt: pwrite new #2: quiet, kept, done
attempt: open reasons #1: quiet, between; ENOENT: quiet, done
attempt: open reasons #2: quiet, between
attempt: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
attempt: lstat reasons/ #2: quiet, between
attempt: stat /: quiet, done
attempt: mkdir reasons/: quiet, between
attempt: chmod reasons/: quiet, between
attempt: fstat reasons: quiet, between
attempt: write reasons: quiet, between
attempt: close reasons: quiet, done
attempt: rename new: quiet, kept, done; ENOENT: quiet, done
attempt: close new: quiet, done
""",
    'resume after the dot': """
attempt: scandir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: readdir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: scandir done/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir done/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir new/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir new/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: open new: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, as before
attempt: flock new #1: QueueError, as before; ENOENT: quiet, as before
attempt: flock new #2: quiet, done
attempt: fstat new: QueueError, as before; ENOENT: quiet, as before
attempt: stat new: QueueError, as before; ENOENT: quiet, as before
attempt: pread new: QueueError, as before
attempt: pwrite new #1: QueueError, as before
attempt: pwrite new #2: quiet, kept, done
attempt: open reasons #1: quiet, between; ENOENT: quiet, done
attempt: open reasons #2: quiet, between
attempt: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
attempt: lstat reasons/ #2: quiet, between
attempt: stat /: quiet, done
attempt: mkdir reasons/: quiet, between
attempt: chmod reasons/: quiet, between
attempt: fstat reasons: quiet, between
attempt: write reasons: quiet, between
attempt: close reasons: quiet, done
attempt: rename new: quiet, kept, done; ENOENT: quiet, done
attempt: close new: quiet, done
""",
    'retry by hand': """
attempt: scandir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: readdir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: scandir done/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir done/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir new/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir new/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: open new: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, as before
attempt: flock new #1: QueueError, as before; ENOENT: quiet, as before
attempt: flock new #2: quiet, done
attempt: fstat new: QueueError, as before; ENOENT: quiet, as before
attempt: stat new: QueueError, as before; ENOENT: quiet, as before
attempt: pread new: QueueError, as before
attempt: pwrite new #1: QueueError, as before
attempt: pwrite new #2,3: QueueError, between
attempt: pwrite new #4: quiet, kept, done
attempt: rename new #1: QueueError, between; ENOENT: quiet, done
attempt: rename new #2: quiet, kept, done; ENOENT: quiet, done
attempt: unlink done: quiet, between
attempt: close new: quiet, done
""",
    'attempt': """
attempt: scandir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: readdir tmp/: QueueError, as before; ENOENT: quiet, done
attempt: scandir done/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir done/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir new/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir new/: QueueError, as before; ENOENT: quiet, as before
attempt: scandir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: readdir cur/: QueueError, as before; ENOENT: quiet, as before
attempt: open new #1: QueueError, as before; EPERM EACCES ENOENT: quiet, between
attempt: open new #2,3: QueueError, between; EPERM EACCES ENOENT: quiet, between
attempt: flock new #1: QueueError, as before; ENOENT: quiet, between
attempt: flock new #2,4,6: quiet, done
attempt: flock new #3,5: QueueError, between; ENOENT: quiet, between
attempt: fstat new #1: QueueError, as before; ENOENT: quiet, between
attempt: fstat new #2,3: QueueError, between; ENOENT: quiet, between
attempt: stat new #1: QueueError, as before; ENOENT: quiet, between
attempt: stat new #2,3: QueueError, between; ENOENT: quiet, between
attempt: pread new #1: QueueError, as before
attempt: pread new #2,3: QueueError, between
attempt: pwrite new #1,2: QueueError, as before
attempt: pwrite new #3,6: quiet, kept, between
attempt: pwrite new #4,5,7,8: QueueError, between
attempt: pwrite new #9: quiet, kept, done
attempt: pwrite new #10: quiet, between
attempt: rename new #1,2: quiet, kept, between; ENOENT: quiet, done
attempt: rename new #3: quiet, kept, done; ENOENT: quiet, done
attempt: unlink done: quiet, between
attempt: close new: quiet, done
attempt: open reasons #1: quiet, between; ENOENT: quiet, done
attempt: open reasons #2: quiet, between
attempt: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
attempt: lstat reasons/ #2: quiet, between
attempt: stat /: quiet, done
attempt: mkdir reasons/: quiet, between
attempt: chmod reasons/: quiet, between
attempt: fstat reasons: quiet, between
attempt: write reasons: quiet, between
attempt: close reasons: quiet, done
attempt: rename done: quiet, between; ENOENT: quiet, done
""",
    'put aside': """
claim: open new #1: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, done
claim: open new #2: QueueError, as before; EPERM EACCES: quiet, between; ENOENT: quiet, as before
claim: flock new #1: QueueError, as before; ENOENT: quiet, done
claim: flock new #2,4: quiet, done
claim: flock new #3: QueueError, as before; ENOENT: quiet, as before
claim: fstat new #1: QueueError, as before; ENOENT: quiet, done
claim: fstat new #2: QueueError, as before; ENOENT: quiet, as before
claim: stat new #1: QueueError, as before; ENOENT: quiet, done
claim: stat new #2: QueueError, as before; ENOENT: quiet, as before
claim: pread new: QueueError, as before
claim: pwrite new #1: QueueError, as before
claim: pwrite new #2: quiet, between
claim: close new: quiet, done
claim: lstat failed: quiet, done
claim: open reasons #1: quiet, between; ENOENT: quiet, done
claim: open reasons #2: quiet, between
claim: lstat reasons/ #1: quiet, between; ENOENT: quiet, done
claim: lstat reasons/ #2: quiet, between
claim: stat /: quiet, done
claim: mkdir reasons/: quiet, between
claim: chmod reasons/: quiet, between
claim: write reasons: quiet, between
claim: close reasons: quiet, done
claim: rename new: quiet, as before; ENOENT: quiet, done
""",
    'adopt': """
claim: open new #1: QueueError, as before; EPERM EACCES: DamagedMail, between; ENOENT: quiet, as before
claim: open new #2: QueueError, between; EPERM EACCES: DamagedMail, between; ENOENT: quiet, between
claim: flock new #1: QueueError, as before; ENOENT: quiet, as before
claim: flock new #2: QueueError, between; ENOENT: quiet, between
claim: flock new #3,4: quiet, between
claim: fstat new #1: QueueError, as before; ENOENT: quiet, as before
claim: fstat new #2: QueueError, between; ENOENT: quiet, between
claim: stat new #1: QueueError, as before; ENOENT: quiet, as before
claim: stat new #2: QueueError, between; ENOENT: quiet, between
claim: pread new #1,2: QueueError, as before
claim: pread new #3: QueueError, between
claim: open tmp: QueueError, as before
claim: flock tmp #1: QueueError, as before; ENOENT: quiet, between
claim: flock tmp #2: quiet, between
claim: fstat tmp: QueueError, as before; ENOENT: quiet, between
claim: stat tmp: QueueError, as before; ENOENT: quiet, between
claim: pwrite tmp #1: QueueError, as before
claim: pwrite tmp #2: QueueError, between
claim: fsync tmp: QueueError, as before
claim: rename tmp: QueueError, as before; ENOENT: quiet, between
claim: rename new: QueueError, between; ENOENT: quiet, between
claim: close tmp: quiet, between
claim: pwrite new #1: QueueError, between
claim: pwrite new #2: quiet, between
claim: close new: quiet, between
""",
    'prepare': """
prepare: lstat / #1: QueueError, done; ENOENT: quiet, done
prepare: lstat / #2: QueueError, done
prepare: mkdir /: QueueError, done
prepare: chmod /: QueueError, done
prepare: lstat tmp/ #1: QueueError, done; ENOENT: quiet, done
prepare: lstat tmp/ #2: QueueError, done
prepare: stat /: quiet, done
prepare: mkdir tmp/: QueueError, done
prepare: chmod tmp/: QueueError, done
prepare: lstat new/ #1: QueueError, done; ENOENT: quiet, done
prepare: lstat new/ #2: QueueError, done
prepare: mkdir new/: QueueError, done
prepare: chmod new/: QueueError, done
prepare: lstat cur/ #1: QueueError, done; ENOENT: quiet, done
prepare: lstat cur/ #2: QueueError, done
prepare: mkdir cur/: QueueError, done
prepare: chmod cur/: QueueError, done
prepare: lstat done/ #1: QueueError, done; ENOENT: quiet, done
prepare: lstat done/ #2: QueueError, done
prepare: mkdir done/: QueueError, done
prepare: chmod done/: QueueError, done
prepare: lstat failed/ #1: QueueError, done; ENOENT: quiet, done
prepare: lstat failed/ #2: QueueError, done
prepare: mkdir failed/: QueueError, done
prepare: chmod failed/: QueueError, done
prepare: lstat reasons/: QueueError, done; ENOENT: quiet, done
prepare: listdir /: quiet, done
prepare: open probe: QueueError, done
prepare: write probe: QueueError, done
prepare: close probe: QueueError, done
prepare: unlink probe: QueueError, between; ENOENT: quiet, between
prepare: stat tmp/: quiet, done
prepare: access tmp/: QueueError, done
prepare: stat new/: quiet, done
prepare: access new/: QueueError, done
prepare: stat cur/: quiet, done
prepare: access cur/: QueueError, done
prepare: stat done/: quiet, done
prepare: access done/: QueueError, done
prepare: stat failed/: quiet, done
prepare: access failed/: QueueError, done
prepare: open lock-probe #1: QueueError, done
prepare: open lock-probe #2: QueueError, done; ENOENT: quiet, done
prepare: flock lock-probe: QueueError, done
prepare: unlink lock-probe: quiet, between
prepare: close lock-probe: quiet, done
prepare: pipe2 pipe: QueueError, done
prepare: mkfifo trigger: quiet, done
prepare: chmod trigger: quiet, done
prepare: open trigger: quiet, done
prepare: fstat trigger: quiet, done
""",
    'check': """
check: open probe: QueueError, done
check: write probe: QueueError, done
check: close probe: QueueError, done
check: unlink probe: QueueError, between; ENOENT: quiet, between
check: stat tmp/: quiet, done
check: access tmp/: QueueError, done
check: stat new/: quiet, done
check: access new/: QueueError, done
check: stat cur/: quiet, done
check: access cur/: QueueError, done
check: stat done/: quiet, done
check: access done/: QueueError, done
check: stat failed/: quiet, done
check: access failed/: QueueError, done
""",
    'sync': """
sync: open new/: OSError, done
sync: fsync new/: OSError, done
sync: close new/: OSError, done
sync: open cur/: OSError, done
sync: fsync cur/: OSError, done
sync: close cur/: OSError, done
""",
    'wake': """
pull: open trigger: quiet, done
pull: fstat trigger: quiet, done
pull: write trigger: quiet, done
pull: close trigger: quiet, done
wait: read trigger: OSError, done
""",
}
"""By operation."""
