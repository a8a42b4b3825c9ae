// Nodemailer's smtp-server on several ports, with the settings of the JSON file that is its
// argument. It keeps each mail it takes: NUMBER.eml has the text, and NUMBER.json, which is there
// once the mail is whole, has sender and recipients.

import fs from 'node:fs'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'

import { SMTPServer } from 'smtp-server'

const { host, ports, folder, key, cert, size, name, password } = JSON.parse(
    fs.readFileSync(process.argv[2]),
)
const DOMAINS = ['example.org', 'bücher.example', 'xn--bcher-kva.example']
let last = Math.max(0, ...fs.readdirSync(folder).map((file) => parseInt(file)))

const refusal = (responseCode, message) => Object.assign(new Error(message), { responseCode })

function recipient(address) {
    const at = address.lastIndexOf('@')
    const user = address.slice(0, at)
    if (!DOMAINS.includes(address.slice(at + 1))) return refusal(550, '5.7.1 relay access denied')
    if (user === 'nobody') return refusal(550, '5.1.1 no such user')
    if (user === 'later') return refusal(450, '4.2.0 greylisted, come again')
    return null
}

async function keep(stream, session) {
    const id = String(++last)
    const file = path.join(folder, id)
    await pipeline(stream, fs.createWriteStream(`${file}.eml`))
    if (stream.sizeExceeded) throw refusal(552, '5.3.4 message too large')
    const { mailFrom, rcptTo } = session.envelope
    const recipients = rcptTo.map((to) => to.address)
    fs.writeFileSync(`${file}.new`, JSON.stringify({ id, sender: mailFrom.address, recipients }))
    fs.renameSync(`${file}.new`, `${file}.json`)
    console.log(`kept ${id} from <${mailFrom.address}>`)
}

const common = {
    name: 'smtp-server.example.org',
    key: fs.readFileSync(key),
    cert: fs.readFileSync(cert),
    size,
    authOptional: true,
    disableReverseLookup: true,
    onAuth(auth, session, callback) {
        if (auth.username === name && auth.password === password) return callback(null, { user: name })
        console.log('wrong password')
        callback(refusal(535, '5.7.8 authentication failed'))
    },
    onRcptTo: ({ address }, session, callback) => callback(recipient(address)),
    onData: (stream, session, callback) =>
        keep(stream, session).then(() => callback(null), callback),
}
const servers = {
    plain: {},
    implicit: { secure: true },
    login: { authMethods: ['LOGIN'] },
    closed: {
        onConnect: (session, callback) => callback(refusal(554, '5.7.1 we know you too well')),
    },
    crowded: { maxClients: 1 },
}
for (const [port, options] of Object.entries(servers)) {
    const server = new SMTPServer({ ...common, ...options })
    server.on('error', (error) => console.log(`${port}: ${error.message}`))
    server.listen(ports[port], host)
}
