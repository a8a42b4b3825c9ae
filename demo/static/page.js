// Load /status.json twice a second and show it. Text reaches the page as text only
// (textContent); a mail's html is shown in a sandboxed frame, where no script runs.
'use strict';

const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
const at = (id) => document.getElementById(id);
let newest = null; // the id of the newest event; null until the first response
let before = 0; // the one that was the newest when a button was pressed
let asked = 0; // counts requests: a late response must not undo a newer one

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== ''));
  return made;
}

// A screen reader may read what is set again, also where nothing has changed.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Make the list's items those of the rows: kept where they stand (a frame would load again, and
// the focus would be lost), added, or removed.
function draw(list, rows, key, make, update) {
  const kept = new Set(rows.map((row) => String(key(row))));
  for (const item of [...list.children]) if (!kept.has(item.dataset.key)) remove(list, item);
  const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
  rows.forEach((row, place) => {
    const id = String(key(row));
    const item = old.get(id) || make(row, place);
    item.dataset.key = id;
    if (update) update(item, row);
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
  });
}

// Remove an item. The focus goes from its button to that of the next one, or to the heading.
function remove(list, item) {
  const focused = item.contains(document.activeElement) ? document.activeElement : null;
  const next = item.nextElementSibling || item.previousElementSibling;
  item.remove();
  if (!focused) return;
  const same = next && focused.name && next.querySelector(`[name="${focused.name}"]`);
  (same || list.closest('section').querySelector('h2')).focus();
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
const size = (bytes) => (bytes < 1024 ? `${bytes} bytes` : `${(bytes / 1024).toFixed(1)} KB`);
const pause = (seconds) =>
  seconds < 0.9995 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
const short = (text) => (text.length > 40 ? `${text.slice(0, 39)}…` : text);
const times = (count) => (count === 1 ? 'once' : `${count} times`);

const FOLDERS = {
  tmp: 'being written', new: 'waiting for its time', cur: 'deferred', done: 'event to be written',
};

function queuedItem(mail) {
  return element('li', { class: mail.folder },
    element('div', { class: 'line' }, element('b', {}, mail.subject || '(no subject)'),
      element('span', { class: 'tag' }, FOLDERS[mail.folder])),
    element('div', { class: 'dim' }, `to ${mail.recipients.join(', ')}`),
    element('div', { class: 'dim when' }),
    element('code', { class: 'file' }, `${mail.folder}/${mail.name}`));
}

function queuedUntil(item, mail) {
  const left = mail.due - Date.now() / 1000;
  const tried = mail.attempt ? `tried ${times(mail.attempt)}, ` : '';
  say(item.querySelector('.when'), tried + (left > 0.5 ? `next try in ${Math.ceil(left)} s` : 'due now'));
}

function failedButton(mail, action, label, said) {
  return element('form', { method: 'post', action: `/failed/${mail.id}/${action}`, 'data-said': said },
    element('button', { class: 'button quiet', name: action, 'aria-label': `${label} “${mail.subject}”` }, label));
}

function failedItem(mail) {
  return element('li', { class: 'failed' },
    element('div', { class: 'line' }, element('b', {}, mail.subject || '(no subject)')),
    element('div', { class: 'dim' }, `to ${mail.recipients.join(', ')}`),
    element('div', { class: 'reply' }, mail.reason),
    element('code', { class: 'file' }, `${mail.folder}/${mail.name}`),
    element('div', { class: 'actions' },
      failedButton(mail, 'retry', 'Retry', 'The dead letter is due now.'),
      failedButton(mail, 'drop', 'Drop', 'The dead letter is removed for good.')));
}

function logItem(row) {
  return element('li', { class: row.kind },
    element('div', { class: 'line' }, element('b', {}, row.kind),
      element('span', {}, row.subject), element('time', {}, clock(row.at))),
    element('div', { class: 'dim' }, `${row.recipients.join(', ')} · attempt ${row.attempt}`,
      row.tag ? ` · tag ${row.tag}` : ''),
    element('div', { class: 'reply' }, row.reply || row.reason),
    element('code', { class: 'file' }, row.message_id));
}

let opened = null; // the mail that was opened because it was the newest

function deliveredItem(mail, place) {
  const frame = element('iframe', { sandbox: '', loading: 'lazy', title: mail.subject });
  if (mail.html === null) frame.className = 'text';
  const details = element('details', {},
    element('summary', {}, element('b', {}, mail.subject || '(no subject)'),
      element('time', {}, clock(mail.received_at)),
      element('span', { class: 'dim' }, mail.recipients.join(', '))),
    frame);
  if (mail.attachments.length) {
    details.append(element('ul', { class: 'attachments' }, ...mail.attachments.map((one) =>
      element('li', {}, element('a', { href: one.href, download: one.filename }, one.filename),
        ` ${size(one.size)}, ${one.inline ? 'inside the html' : 'attached'}`))));
  }
  details.append(element('p', { class: 'dim' }, `MAIL FROM ${mail.sender} · `,
    element('a', { href: mail.source, target: '_blank', rel: 'noopener' }, 'its source')));
  // A closed one costs nothing: its frame loads when it is opened.
  details.addEventListener('toggle', () => {
    if (details.open && !frame.src) frame.src = mail.page;
  });
  if (place === 0) {
    if (opened && !opened.contains(document.activeElement)) opened.open = false;
    details.open = true;
    opened = details;
  }
  return element('li', {}, details);
}

const stations = [...at('path').children];
let playing = 0; // counts plays: a new one ends the one before
let lit = 0; // how many stations the mail of the last button has passed

// Light the stations up one after the other, up to the last one that the mail reached.
function play(last, mood = '') {
  const turn = ++playing;
  const end = stations.findIndex((item) => item.dataset.step === last);
  const first = lit > end ? 0 : lit;
  stations.slice(first).forEach((item) => item.classList.remove('lit', 'good', 'bad', 'wait'));
  stations.slice(first, end + 1).forEach((item, n) => {
    setTimeout(() => {
      if (turn !== playing) return;
      item.classList.add('lit');
      if (mood && (n + first === end || item.dataset.step === 'smtp')) item.classList.add(mood);
    }, calm ? 0 : n * 110);
  });
  lit = last === 'maildir' ? end + 1 : 0;
}

const MOODS = { sent: 'good', error: 'bad', deferred: 'wait' };

function outcome(row, status) {
  const mail = status.delivered.find((one) => one.message_id === row.message_id);
  const result = row.kind === 'sent' && mail
    ? `at the relay ${pause(mail.received_at - row.queued_at)} after send()`
    : `${row.kind}: ${row.reply || row.reason}`;
  return `“${short(row.subject)}” ${result}; its event in the database ${pause(row.at - row.queued_at)} after send().`;
}

// Say what the events since the last response were about, if there are any.
function tell(status) {
  const [row] = status.log;
  const top = row ? row.id : 0;
  const fresh = newest === null ? 0 : top - newest;
  newest = top;
  if (fresh <= 0) return;
  play('event', MOODS[row.kind]);
  say(at('last'), fresh === 1 ? outcome(row, status)
    : `${top - before} events since the button, the last one: “${short(row.subject)}” ${row.kind}. Still queued: ${status.counts.queued}.`);
}

const SWITCHES = { processor: 'processor', relay: 'smtp' }; // part: its station

function showPart(name, station, { state, pid }) {
  const form = at(name);
  const on = state === 'running' || state === 'starting';
  form.action = `/${name}/${on ? 'stop' : 'start'}`;
  form.dataset.said = on ? `The ${name} stops: mail waits in the queue.` : `The ${name} starts.`;
  say(form.querySelector('.button'), on ? form.dataset.stop : form.dataset.start);
  say(form.querySelector('.state'), state === 'running' ? `Process ${pid}. Killed, it starts again.`
    : state === 'stopped' ? form.dataset.stopped : `It is ${state} …`);
  const item = stations.find((one) => one.dataset.step === station);
  item.classList.toggle('off', state !== 'running');
  say(item.querySelector('em'), state === 'running' ? '' : state);
}

function showMore(name, shown, count) {
  say(at(`${name}-count`), String(count));
  say(at(`${name}-more`), count > shown ? `and ${count - shown} more` : '');
}

function show(status) {
  const { counts } = status;
  draw(at('queued'), status.queued, (mail) => `${mail.folder}/${mail.name}`, queuedItem, queuedUntil);
  draw(at('failed'), status.failed, (mail) => mail.name, failedItem);
  draw(at('log'), status.log, (row) => row.id, logItem);
  draw(at('delivered'), status.delivered, (mail) => mail.id, deliveredItem);
  for (const name of ['queued', 'failed', 'delivered']) showMore(name, status[name].length, counts[name]);
  showMore('log', status.log.length, Object.values(counts.events).reduce((sum, one) => sum + one, 0));
  say(at('people'), `${status.signups.count} sign-up${status.signups.count === 1 ? '' : 's'}`);
  for (const [name, station] of Object.entries(SWITCHES)) {
    if (status.parts[name] && at(name)) showPart(name, station, status.parts[name]);
  }
  tell(status);
}

function pulse(live) {
  say(at('pulse'), live ? 'live' : 'no response');
  at('pulse').className = live ? 'live' : 'lost';
}

async function look() {
  const mine = ++asked;
  try {
    const response = await fetch('/status.json', { cache: 'no-store' });
    if (!response.ok) throw new Error(`status.json: ${response.status}`);
    const status = await response.json();
    if (mine === asked) show(status);
    pulse(true);
  } catch (error) {
    pulse(false);
  }
}

async function watch() {
  await look();
  setTimeout(watch, 500);
}

function announce(content, button) {
  const close = element('button', { type: 'button', class: 'close', 'aria-label': 'Dismiss' }, '×');
  const box = element('div', { class: 'notice' }, ...content, close);
  close.addEventListener('click', () => {
    box.remove();
    button.focus();
  });
  at('notices').replaceChildren(box);
}

function showErrors(form, page) {
  const from = page.getElementById('signup');
  if (!from) return;
  say(at('error'), page.getElementById('error').textContent);
  for (const name of ['name', 'email']) {
    const wrong = from.elements[name].getAttribute('aria-invalid');
    form.elements[name].toggleAttribute('aria-invalid', false);
    if (wrong) form.elements[name].setAttribute('aria-invalid', wrong);
  }
}

async function press(form, button) {
  const { said, path } = form.dataset;
  const body = new URLSearchParams(new FormData(form));
  at('notices').replaceChildren();
  before = newest || 0;
  const response = await fetch(form.action, { method: 'POST', body });
  const page = new DOMParser().parseFromString(await response.text(), 'text/html');
  const notice = page.getElementById('notice');
  if (notice) announce(notice.childNodes, button);
  if (form.id === 'signup') showErrors(form, page);
  if (!response.ok && !notice) {
    if (response.status !== 400) announce([`The demo replied ${response.status} to this button.`], button);
    return;
  }
  if (form.id === 'signup') form.reset();
  lit = 0;
  if (path) play(path, notice ? 'bad' : '');
  say(at('last'), said);
  look();
}

const busy = new Set(); // forms whose response is still to come

// The forms work without any of this; with it, the page stays where it is, and so does the focus:
// a button that is disabled would lose it.
document.addEventListener('submit', async (event) => {
  const form = event.target;
  const button = event.submitter || form.querySelector('.button');
  event.preventDefault();
  if (busy.has(form)) return;
  busy.add(form);
  try {
    await press(form, button);
  } catch (error) {
    pulse(false);
  } finally {
    busy.delete(form);
  }
});

at('counts').hidden = false;
watch();
