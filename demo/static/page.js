// Load /status.json twice a second and show it. Text reaches the page as text only
// (textContent); a mail's html is shown in a sandboxed frame, where no script runs.
'use strict';

const STEPS = ['request', 'commit', 'maildir', 'processor', 'smtp', 'event'];
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
const at = (id) => document.getElementById(id);
let known = null; // ids of the log rows already seen; null until the first response
let asked = 0; // counts requests: a late response must not undo a newer one

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== ''));
  return made;
}

// Make the list's items those of the rows: kept where they stand (a frame would load again),
// added, or removed.
function draw(list, rows, key, make, update) {
  const old = new Map([...list.children].map((item) => [item.dataset.key, item]));
  rows.forEach((row, place) => {
    const id = String(key(row));
    let item = old.get(id);
    old.delete(id);
    if (!item) {
      item = make(row, place);
      item.dataset.key = id;
    }
    if (update) update(item, row);
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
  });
  for (const gone of old.values()) gone.remove();
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();
const size = (bytes) => (bytes < 1024 ? `${bytes} bytes` : `${(bytes / 1024).toFixed(1)} KB`);
const pause = (seconds) =>
  seconds < 0.9995 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;

const STATES = {
  tmp: 'being written', new: 'waiting for its time', cur: 'deferred', done: 'event to be written',
  failed: 'dead letter',
};

function waitingItem(mail) {
  return element('li', { class: mail.folder },
    element('div', { class: 'line' }, element('b', {}, mail.subject || '(no subject)'),
      element('span', { class: 'tag' }, STATES[mail.folder])),
    element('div', { class: 'dim' }, `to ${mail.recipients.join(', ')}`),
    element('div', { class: 'dim when' }),
    element('code', { class: 'file' }, `${mail.folder}/${mail.name}`));
}

function waitingUntil(item, mail) {
  const left = mail.due - Date.now() / 1000;
  const tried = mail.attempt ? `tried ${mail.attempt === 1 ? 'once' : mail.attempt + ' times'}` : '';
  const next = mail.folder === 'failed' ? 'kept for a person to decide'
    : left > 0.5 ? `next try in ${Math.ceil(left)} s` : 'due now';
  item.querySelector('.when').textContent = [tried, next].filter(Boolean).join(', ');
}

const WORDS = { sent: 'sent', error: 'error', deferred: 'deferred' };

function logItem(row) {
  return element('li', { class: row.kind },
    element('div', { class: 'line' }, element('b', {}, WORDS[row.kind] || row.kind),
      element('span', {}, row.subject), element('time', {}, clock(row.at))),
    element('div', { class: 'dim' }, `${row.recipients.join(', ')} · attempt ${row.attempt}`,
      row.tag ? ` · tag ${row.tag}` : ''),
    element('div', { class: 'reply' }, row.reply || row.reason),
    element('code', { class: 'file' }, row.message_id));
}

function deliveredItem(mail, place) {
  const frame = element('iframe', { sandbox: '', loading: 'lazy', title: mail.subject });
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
  details.open = place === 0;
  return element('li', {}, details);
}

let playing = 0;

// Light the stations up one after the other, as far as the mail came.
function play(kind) {
  const turn = ++playing;
  const [last, mood] = { raised: ['commit', 'bad'], error: ['event', 'bad'], deferred: ['event', 'wait'] }[kind]
    || ['event', 'good'];
  const items = [...at('path').children];
  items.forEach((item) => item.classList.remove('lit', 'good', 'bad', 'wait'));
  STEPS.slice(0, STEPS.indexOf(last) + 1).forEach((step, n) => {
    setTimeout(() => {
      if (turn !== playing) return;
      items[n].classList.add('lit');
      if (kind === 'raised' ? step === 'commit' : n >= STEPS.indexOf('smtp')) items[n].classList.add(mood);
    }, calm ? 0 : n * 110);
  });
}

function tell(row, delivered) {
  const mail = delivered.find((one) => one.message_id === row.message_id);
  const answer = row.kind === 'sent' && mail
    ? `at the relay ${pause(mail.received_at - row.queued_at)} after send()`
    : `${row.kind}: ${row.reply || row.reason}`;
  at('last').textContent =
    `“${row.subject}” ${answer}; its event in the database ${pause(row.at - row.queued_at)} after send().`;
}

function show(status) {
  const waiting = [...status.queued, ...status.failed];
  draw(at('queued'), waiting, (mail) => `${mail.folder}/${mail.name}`, waitingItem, waitingUntil);
  draw(at('log'), status.log, (row) => row.id, logItem);
  draw(at('delivered'), status.delivered, (mail) => mail.id, deliveredItem);
  at('waiting').textContent = status.queued.length || '';
  at('people').textContent = `${status.signups.count} sign-up${status.signups.count === 1 ? '' : 's'}`;
  const fresh = known === null ? [] : status.log.filter((row) => !known.has(row.id));
  known = new Set(status.log.map((row) => row.id));
  if (fresh.length) play(fresh[0].kind);
  if (fresh.length) tell(fresh[0], status.delivered);
}

async function look() {
  const mine = ++asked;
  const pulse = at('pulse');
  try {
    const response = await fetch('/status.json', { cache: 'no-store' });
    if (!response.ok) throw new Error(`status.json answers ${response.status}`);
    const status = await response.json();
    if (mine === asked) show(status);
    pulse.textContent = 'live';
    pulse.className = 'live';
  } catch (error) {
    pulse.textContent = 'the demo does not answer';
    pulse.className = 'lost';
  }
}

async function watch() {
  await look();
  setTimeout(watch, 500);
}

function announce(notice) {
  const close = element('button', { type: 'button', class: 'close', 'aria-label': 'Dismiss' }, '×');
  const box = element('div', { class: 'notice' }, ...notice.childNodes, close);
  close.addEventListener('click', () => box.remove());
  at('notices').replaceChildren(box);
}

// The forms work without any of this; with it, the page stays where it is.
for (const form of document.forms) {
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const button = form.querySelector('button');
    button.disabled = true;
    at('notices').replaceChildren();
    try {
      const body = new URLSearchParams(new FormData(form));
      const response = await fetch(form.action, { method: 'POST', body });
      const page = new DOMParser().parseFromString(await response.text(), 'text/html');
      const notice = page.getElementById('notice');
      if (notice) announce(notice);
      if (form.action.endsWith('/raise')) {
        play('raised');
        at('last').textContent = 'Rolled back: the row and the mail, both.';
      }
      if (form.id === 'signup') {
        const error = page.getElementById('error');
        at('error').textContent = error ? error.textContent : '';
        form.elements.email.toggleAttribute('aria-invalid', Boolean(error && error.textContent));
        if (response.ok) form.reset();
      }
    } catch (error) {
      at('pulse').textContent = 'the demo does not answer';
      at('pulse').className = 'lost';
    } finally {
      button.disabled = false;
    }
    look();
  });
}

watch();
