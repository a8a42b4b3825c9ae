"""The deliveries: what happens to a message at the commit of its transaction.

================ ==================================================================================
module           what it holds
================ ==================================================================================
queued           ``QueuedMailDelivery`` puts mail into the queue at commit; ``BoundMailDelivery`` is
                 ``request.mailer``
processor_watch  whether a queue processor serves that queue
direct           ``DirectMailDelivery`` hands mail to the relay at commit
direct_sender    the sending thread of direct delivery
handed_over      what a commit hands over to it
direct_claim     its claims, which report when an event is due again
data_manager     the mail of one transaction: two-phase commit, savepoints
failed_commit    whether a commit that raised may have been done all the same
send_now         sending at once, without a transaction
================ ==================================================================================
"""
