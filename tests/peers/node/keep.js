// A plugin of Haraka's that keeps each mail it takes: NUMBER.eml has the text, and NUMBER.json, which
// is there once the mail is whole, has sender and recipients. It reads config/keep.json.

const fs = require('node:fs')
const path = require('node:path')

const DOMAINS = ['example.org', 'xn--bcher-kva.example']

exports.register = function () {
    this.settings = this.config.get('keep.json')
}

// No name server is ever asked.
exports.hook_lookup_rdns = (next) => next(OK, 'localhost')

exports.hook_connect = function (next, connection) {
    if (connection.local.port === this.settings.closed) return next(DENY, 'we know you too well')
    next()
}

exports.hook_rcpt = (next, connection, [recipient]) => {
    if (!DOMAINS.includes(recipient.host)) return next(DENY, '5.7.1 relay access denied')
    if (recipient.user === 'nobody') return next(DENY, '5.1.1 no such user')
    if (recipient.user === 'later') return next(DENYSOFT, '4.2.0 greylisted, come again')
    next(OK)
}

function keep(next, connection) {
    const { uuid, mail_from, rcpt_to, message_stream } = connection.transaction
    const file = path.join(this.settings.folder, uuid)
    const text = fs.createWriteStream(`${file}.eml`)
    text.once('error', (error) => next(DENYSOFT, error.message))
    text.once('close', () => {
        const envelope = { id: uuid, sender: mail_from.address, recipients: rcpt_to.map((to) => to.address) }
        fs.writeFileSync(`${file}.new`, JSON.stringify(envelope))
        fs.renameSync(`${file}.new`, `${file}.json`)
        next(OK)
    })
    message_stream.pipe(text)
}

exports.hook_queue = keep
// From a client that has logged in: Haraka would deliver it.
exports.hook_queue_outbound = keep
