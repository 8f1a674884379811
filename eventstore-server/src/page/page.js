// The page of a store: its newest events live, one event in full, an aggregate's history, and the state of the server.
//
// What a store contains is trusted in nothing. It goes into the document as text only, each text isolated, and whatever
// cannot be seen is made visible. JSON is shown as it was written, not as JavaScript would read it: every digit stays.

const PAGE_EVENTS = 100; // of one request
const MOST_ROWS = 400; // in the document
const LOAD_BYTES = 8 << 20; // after so many no further page is asked for by itself
const PREVIEW = 240; // characters of data in a row
const LARGE = 64 << 10; // events longer than this are not kept in full by the list
const FLUSH_EVERY = 200; // milliseconds between two changes of the rows
const STATS_EVERY = 2000;
const STATS_KEPT = 150; // five minutes
const SHORTEST_CHART = 60_000;
const SILENCE = 40_000; // the server says something every 15 s
const ASLEEP_AFTER = 30_000; // a hidden page gives its connection back: browsers have six for each server
const FIRST_WAIT = 250;
const LONGEST_WAIT = 10_000;
const FAR_BEHIND = 5000; // events: then the newest are loaded anew instead of all of them one after the other
const STEPS = [32 << 10, 256 << 10, 2 << 20, 8 << 20]; // characters of one content that are shown
const MOST_MARKS = 5000; // elements for what cannot be seen, in one content; afterwards it is escaped without them
const MOST_COLOURED = 128 << 10; // characters of JSON in colours
const DEEPEST_INDENT = 40;

/** What the resources are relative to: where this file is. */
const BASE = new URL('.', import.meta.url);

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat('en');

// ---------------------------------------------------------------- elements

/** An element. Properties are attributes; children are nodes or texts of this page's own. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ---------------------------------------------------------------- text of others

// Controls, format characters such as those of direction, halves of characters, spaces that are not the space, and what is
// drawn as nothing.
const UNSEEN = String.raw`\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800`;
const IN_A_NAME = new RegExp(`[${UNSEEN}]+|^ +| +$`, 'gu');
const IN_A_LINE = new RegExp(`[${UNSEEN}]+`, 'gu');
const IN_LINES = new RegExp(`(?![\\n\\t])[${UNSEEN}]`, 'gu');

const escapes = (text) => Array.from(text, (char) => `\\u{${char.codePointAt(0).toString(16)}}`).join('');

/** The text in one line with everything visible, for places that take no elements. */
const escaped = (text) => text.replace(IN_A_NAME, escapes);

/** Appends the text to an element; what cannot be seen becomes a mark, until `budget.marks` is used up. */
function appendText(parent, text, pattern, budget = { marks: 200 }) {
  let at = 0;
  let plain = '';
  for (const { 0: found, index } of text.matchAll(pattern)) {
    plain += text.slice(at, index);
    at = index + found.length;
    if (budget.marks > 0) {
      budget.marks -= 1;
      if (plain) parent.append(plain);
      plain = '';
      parent.append(element('span', { class: 'hidden-text' }, escapes(found)));
    } else {
      plain += escapes(found);
    }
  }
  plain += text.slice(at);
  if (plain) parent.append(plain);
}

/** A name of the store's: an id, a type, an aggregate. Spaces at its ends are visible too. */
function name(text, pattern = IN_A_NAME) {
  const made = element('bdi');
  appendText(made, text, pattern);
  return made;
}

/** A copy that does not keep the text alive that it was cut out of. */
const copy = (text) => JSON.parse(JSON.stringify(text));

// ---------------------------------------------------------------- JSON as it was written

const [QUOTE, BACKSLASH] = [0x22, 0x5c];

const isSpace = (code) => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;

function afterSpace(text, at) {
  while (isSpace(text.charCodeAt(at))) at += 1;
  return at;
}

/** Where the string ends whose quote is at `at`. */
function endOfString(text, at) {
  for (let end = at + 1; ; end += 1) {
    end = text.indexOf('"', end);
    if (end < 0) throw new SyntaxError('a string has no end');
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === BACKSLASH) slashes += 1;
    if (slashes % 2 === 0) return end + 1;
  }
}

const TOKEN_OF_OTHERS = /[^\s"[\]{},:]+/y;

function endOfToken(text, at) {
  if (text.charCodeAt(at) === QUOTE) return endOfString(text, at);
  if ('[]{},:'.includes(text[at])) return at + 1;
  TOKEN_OF_OTHERS.lastIndex = at;
  if (!TOKEN_OF_OTHERS.test(text)) throw new SyntaxError('no JSON');
  return TOKEN_OF_OTHERS.lastIndex;
}

/** Where the value ends that begins at `at`. The text is JSON of the server; what is none gives an error or nonsense. */
function endOfValue(text, at) {
  let depth = 0;
  for (;;) {
    at = afterSpace(text, at);
    if (at >= text.length) throw new SyntaxError('the JSON has no end');
    const first = text[at];
    if (first === '{' || first === '[') depth += 1;
    if (first === '}' || first === ']') depth -= 1;
    at = endOfToken(text, at);
    if (depth <= 0) return at;
  }
}

/** The members of an object, each value as its text. */
function membersOf(text) {
  const members = new Map();
  let at = afterSpace(text, afterSpace(text, 0) + 1);
  while (text[at] !== '}') {
    const keyEnd = endOfString(text, at);
    const start = afterSpace(text, afterSpace(text, keyEnd) + 1);
    const end = endOfValue(text, start);
    members.set(JSON.parse(text.slice(at, keyEnd)), text.slice(start, end));
    at = afterSpace(text, end);
    if (text[at] === ',') at = afterSpace(text, at + 1);
  }
  return members;
}

/** The elements of an array, each as its text. */
function* elementsOf(text) {
  let at = afterSpace(text, afterSpace(text, 0) + 1);
  while (text[at] !== ']') {
    const end = endOfValue(text, at);
    yield text.slice(at, end);
    at = afterSpace(text, end);
    if (text[at] === ',') at = afterSpace(text, at + 1);
  }
}

/** The content of a field that has two forms: `{ json }`, `{ base64 }`, or nothing. */
function contentOf(members, field) {
  if (members.has(field)) return { json: members.get(field) };
  if (members.has(`${field}_base64`)) return { base64: JSON.parse(members.get(`${field}_base64`)) };
  return null;
}

/** An event with its contents as they were written. */
function readEvent(text) {
  const members = membersOf(text);
  const value = (field) => JSON.parse(members.get(field) ?? 'null');
  return {
    id: value('id'),
    type: value('type'),
    aggregate: value('aggregate_id'),
    version: value('version'),
    revision: value('revision'),
    recordedAt: value('recorded_at'),
    data: contentOf(members, 'data'),
    metadata: contentOf(members, 'metadata'),
  };
}

/** What a row needs of an event. */
function summaryOf(text) {
  const { data, metadata, ...rest } = readEvent(text);
  return { ...JSON.parse(JSON.stringify(rest)), preview: copy(previewOf(data)), size: sizeOf(data) };
}

function previewOf(content) {
  if (!content) return '';
  if (content.json !== undefined) return content.json.slice(0, PREVIEW);
  const bytes = bytesOf(content.base64.slice(0, PREVIEW));
  const text = textOf(bytes, { stream: true });
  return text === null ? `binary: ${hex(bytes.subarray(0, 24))}` : text.replace(/\s+/g, ' ');
}

function sizeOf(content) {
  if (!content) return 0;
  if (content.json === undefined) return (content.base64.length / 4) * 3 - (/=*$/.exec(content.base64.slice(-2))[0].length);
  let bytes = content.json.length;
  for (let at = 0; at < content.json.length; at += 1) {
    const code = content.json.charCodeAt(at);
    if (code > 0x7f) bytes += code > 0x7ff && (code < 0xd800 || code > 0xdfff) ? 2 : 1;
  }
  return bytes;
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));

/** The text that these bytes are in UTF-8, or `null`. Text has no NUL. */
function textOf(bytes, options) {
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes, options);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(' ');

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// ---------------------------------------------------------------- numbers and times

function bytesText(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) [bytes, unit] = [bytes / 1024, unit + 1];
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

function durationText(seconds) {
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

const two = (number) => String(number).padStart(2, '0');
const dateText = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
const clockText = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;

/** The fraction as it was written: JavaScript's times end at milliseconds. */
const fractionOf = (recordedAt) => /\.\d+/.exec(recordedAt)?.[0] ?? '';

function timeOf(recordedAt) {
  const date = new Date(recordedAt);
  const today = dateText(date) === dateText(new Date());
  const text = today ? clockText(date) + fractionOf(recordedAt).slice(0, 4) : `${dateText(date).slice(2)} ${clockText(date)}`;
  return element('time', { datetime: recordedAt, title: `${recordedAt} (UTC)` }, text);
}

function localText(recordedAt) {
  const date = new Date(recordedAt);
  const zone = new Intl.DateTimeFormat('en', { timeZoneName: 'longOffset' }).formatToParts(date);
  return `${dateText(date)} ${clockText(date)}${fractionOf(recordedAt)} ${zone.find((part) => part.type === 'timeZoneName')?.value ?? ''}`;
}

const inputTime = (utc) => (Number.isNaN(Date.parse(utc)) ? '' : `${dateText(new Date(utc))}T${clockText(new Date(utc))}`);
const utcTime = (local) => new Date(local).toISOString().replace('.000Z', 'Z');

const sleep = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });

// ---------------------------------------------------------------- requests

const TOKEN = 'eventstore-token';

/** An error of the server, or of the way to it: then the status is 0. */
class Problem extends Error {
  constructor({ status = 0, code = 'connection', detail = 'The server does not answer.', retryable = false }) {
    super(detail);
    Object.assign(this, { status, code, detail: String(detail), retryable });
  }

  /** Whether it may be over soon. */
  get passes() {
    return this.retryable || [0, 429, 502, 503, 504].includes(this.status);
  }
}

async function request(path, { accept = 'application/json', signal } = {}) {
  const headers = { Accept: accept };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(new URL(path, BASE), { headers, signal, cache: 'no-store' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({});
  }
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (problem.status === 401) askForToken(problem);
  throw problem;
}

async function problemOf(response) {
  const { status, statusText } = response;
  const text = (await response.text().catch(() => '')).slice(0, 10_000);
  try {
    return new Problem({ detail: statusText || `status ${status}`, ...JSON.parse(text), status });
  } catch {
    return new Problem({ status, code: '', detail: text.slice(0, 500) || statusText || `The server answered with the status ${status}.` });
  }
}

async function textFrom(path, signal) {
  const response = await request(path, { signal });
  try {
    return await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({ detail: 'The connection was lost.' });
  }
}

const jsonFrom = async (path, signal) => JSON.parse(await textFrom(path, signal));

/** What to tell of any error. */
const problemText = (error) => (error instanceof Problem ? error.detail : `This page cannot go on: ${error}`);

function tell(place, error, ...actions) {
  place.replaceChildren();
  place.hidden = !error;
  if (!error) return;
  appendText(place, problemText(error), IN_A_NAME);
  place.append(...actions);
}

function button(text, action, attributes = {}) {
  const made = element('button', { type: 'button', ...attributes }, text);
  made.addEventListener('click', action);
  return made;
}

// ---------------------------------------------------------------- the token

function showOnly(id) {
  for (const each of ['token', 'stores', 'app']) $(each).hidden = each !== id;
}

function askForToken(problem) {
  if (!$('token').hidden) return;
  const had = sessionStorage.getItem(TOKEN) !== null;
  stopAll();
  sessionStorage.removeItem(TOKEN);
  showOnly('token');
  setState('ended', had ? 'Token refused' : 'Token needed');
  tell($('problem'), null);
  $('forget').hidden = true;
  $('token-detail').replaceChildren(had ? 'The server did not take this token: ' : '');
  appendText($('token-detail'), problem.detail, IN_A_NAME);
  $('token-text').value = '';
  $('token-text').focus();
}

$('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = $('token-text').value.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    $('token-detail').textContent = 'A token has letters, digits and signs of ASCII only, and no spaces.';
    return;
  }
  sessionStorage.setItem(TOKEN, token);
  $('token-text').value = '';
  start();
});

$('forget').addEventListener('click', () => {
  sessionStorage.removeItem(TOKEN);
  start();
});

// ---------------------------------------------------------------- the address

const FILTERS = ['aggregate', 'aggregate_prefix', 'type', 'recorded_since', 'recorded_before'];

/** What the address asks for. An aggregate's history leaves the filters aside. */
function view() {
  const query = new URLSearchParams(location.search);
  const filters = FILTERS.filter((each) => query.get(each)).map((each) => [each, query.get(each)]);
  return { filters, history: query.get('history') || null, event: query.get('event') || null };
}

function address(changes) {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) {
    if (value) query.set(key, value);
    else query.delete(key);
  }
  const text = query.toString();
  return text ? `?${text}` : location.origin + location.pathname;
}

function go(changes) {
  history.pushState(null, '', address(changes));
  route();
}

/** A link to another view of this page: whatever the id, it is in the query. */
function link(changes, attributes, ...children) {
  const made = element('a', { href: address(changes), ...attributes }, ...children);
  made.changes = changes;
  return made;
}

document.addEventListener('click', (event) => {
  const clicked = event.target.closest('a');
  if (!clicked?.changes || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(clicked.changes);
});

addEventListener('popstate', () => {
  if (!$('app').hidden) route();
});

/** Shows what the address asks for, and leaves alone what is shown already. */
function route() {
  const { filters, history: aggregate, event } = view();
  const key = JSON.stringify([aggregate, aggregate === null ? filters : []]);
  if (list?.key !== key) openList(key, { filters, aggregate });
  if (detail.id !== event) showDetail(event);
}

// ---------------------------------------------------------------- the state of the connection

function setState(state, text) {
  const place = $('state');
  if (place.dataset.state === state && place.dataset.text === text) return;
  Object.assign(place.dataset, { state, text });
  place.textContent = escaped(text);
  $('again').hidden = state !== 'ended' || $('app').hidden;
}

$('again').addEventListener('click', () => start());

// ---------------------------------------------------------------- the list

/** The list that is shown. */
let list = null;

function openList(key, { filters, aggregate }) {
  list?.stop();
  list = new List(key, aggregate === null ? filters : [['aggregate', aggregate]], aggregate);
  $('search').hidden = aggregate !== null;
  $('leave').hidden = aggregate === null;
  $('leave').changes = { history: null };
  $('leave').href = address({ history: null });
  const title = $('list-title');
  title.replaceChildren(aggregate === null ? 'Events' : 'History of ');
  if (aggregate !== null) title.append(name(aggregate));
  const columns = aggregate === null ? ['Version', 'Time', 'Type', 'Aggregate', 'Data'] : ['Revision', 'Version', 'Time', 'Type', 'Data'];
  $('columns').replaceChildren(
    ...columns.map((each) => {
      const number = each === 'Version' || each === 'Revision' ? ' number' : '';
      return element('th', { role: 'columnheader', scope: 'col', class: `c-${each.toLowerCase()}${number}` }, each);
    }),
  );
  fillForm(filters);
  list.start();
}

/**
 * Events one behind the other, without a gap: the newest first, or, of one aggregate, in their order. At most `MOST_ROWS` of
 * them are in the document; more are loaded at either end. Those that arrive wait while somebody reads.
 */
class List {
  events = []; // summaries, in ascending order
  older = false; // whether there may be events before these
  newer = false; // whether there are events after these that did not arrive
  head = 0; // every event up to this version was looked at
  arrived = []; // the last ones that arrived and are not in `events`
  lost = 0; // the newest version that arrived and was dropped again
  fresh = 0; // how many arrived and are not in `events`
  paused = false;
  busy = false;
  cursor = null; // of the history that these events are of
  #stopper = new AbortController();
  #rows = new Map();
  #timer = null;
  #loaded = false;

  constructor(key, filters, aggregate) {
    this.key = key;
    this.filters = filters;
    this.aggregate = aggregate;
    this.ascending = aggregate !== null;
    this.isFiltered = filters.length > 0;
  }

  get signal() {
    return this.#stopper.signal;
  }

  stop() {
    this.#stopper.abort();
    clearTimeout(this.#timer);
  }

  query(more) {
    return new URLSearchParams([...this.filters, ...Object.entries(more)]).toString();
  }

  async start() {
    setState('connecting', 'Connecting');
    tell($('list-problem'), null);
    this.render();
    for (let wait = FIRST_WAIT; !this.#loaded && !this.signal.aborted; wait = Math.min(wait * 2, LONGEST_WAIT)) {
      const problem = await this.load(this.ascending ? 'newer' : 'older');
      if (!problem) break;
      if (this.signal.aborted) return;
      setState(problem.passes ? 'reconnecting' : 'ended', problem.passes ? `Reconnecting: ${problemText(problem)}` : problemText(problem));
      if (!problem.passes) return;
      await sleep(wait, this.signal);
    }
    if (!this.signal.aborted) follow(this);
  }

  /** Loads events at one end. The answer is the problem, if there was one. */
  async load(direction) {
    if (this.busy) return null;
    this.busy = true;
    this.render();
    try {
      await this.#load(direction);
      tell($('list-problem'), null);
      return null;
    } catch (error) {
      if (!this.signal.aborted) tell($('list-problem'), error, button('Try again', () => (this.#loaded ? this.load(direction) : reload())));
      return error;
    } finally {
      this.busy = false;
      if (!this.signal.aborted) this.flush();
    }
  }

  async #load(direction) {
    let [bytes, loaded, more, head] = [0, [], true, 0];
    while (more && loaded.length < PAGE_EVENTS && bytes < LOAD_BYTES) {
      const place = { page_events: PAGE_EVENTS };
      if (direction === 'older') {
        place.direction = 'backward';
        const first = loaded.at(-1) ?? this.events[0];
        if (first) place.before = first.version;
      } else {
        place.since = (loaded.at(-1) ?? this.events.at(-1))?.version ?? 0;
      }
      const text = await textFrom(`events?${this.query(place)}`, this.signal);
      const page = membersOf(text);
      bytes += text.length;
      loaded.push(...Array.from(elementsOf(page.get('events')), summaryOf));
      more = page.get('next') !== 'null';
      if (direction === 'newer' || head === 0) head = Number(page.get('head'));
    }
    if (!this.#loaded) this.head = head;
    this.#loaded = true;
    if (direction === 'older') {
      this.events = [...loaded.reverse(), ...this.events];
      this.older = more;
      if (this.events.length > MOST_ROWS) {
        this.events.length = MOST_ROWS;
        this.newer = true;
      }
    } else {
      this.events.push(...loaded);
      this.newer = more || this.lost > head;
      if (!this.newer) this.arrived = this.arrived.filter(({ version }) => version > head);
      this.#trimOldest();
    }
  }

  #trimOldest() {
    if (this.events.length <= MOST_ROWS) return;
    this.events.splice(0, this.events.length - MOST_ROWS);
    this.older = true;
  }

  /** An event of the stream, as its text. */
  arrive(version, text) {
    if (version <= this.head) return;
    this.head = version;
    this.fresh += 1;
    this.arrived.push({ version, event: text.length > LARGE ? summaryOf(text) : text });
    if (this.arrived.length > MOST_ROWS) this.lost = this.arrived.shift().version;
    this.#timer ??= setTimeout(() => this.flush(), FLUSH_EVERY);
  }

  /** Whether somebody reads, so that rows must not move. */
  get #isRead() {
    if (this.paused) return true;
    if (this.ascending) return false;
    return isPointed || isScrolled || $('rows').contains(document.activeElement);
  }

  /** Shows what arrived, unless somebody reads. */
  flush({ force = false } = {}) {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.signal.aborted || this.busy || this.newer || (!force && this.#isRead)) return this.render();
    const last = this.events.at(-1)?.version ?? 0;
    // If some of them were dropped, those that are left are as many as there may be: all others go, and there is no gap.
    const arrived = this.arrived.filter(({ version }) => version > last);
    this.events.push(...arrived.map(({ event }) => (typeof event === 'string' ? summaryOf(event) : event)));
    [this.arrived, this.fresh, this.lost] = [[], 0, 0];
    this.#trimOldest();
    return this.render(true);
  }

  render(isNew = false) {
    const shown = this.ascending ? this.events : this.events.toReversed();
    const rows = $('rows');
    const kept = new Map();
    const hadFocus = rows.contains(document.activeElement);
    let next = rows.firstChild;
    for (const event of shown) {
      let row = this.#rows.get(event.version);
      if (!row) {
        row = rowOf(event, this.ascending);
        if (isNew && this.#rows.size > 0) row.classList.add('new');
      }
      kept.set(event.version, row);
      if (row === next) next = row.nextSibling;
      else rows.insertBefore(row, next);
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
    this.#rows = kept;
    markRows();
    if (hadFocus && !rows.contains(document.activeElement)) rows.querySelector('a')?.focus();

    const [before, after] = [$('load-before'), $('load-after')];
    const [canBefore, canAfter] = this.ascending ? [this.older, this.newer] : [this.newer, this.older];
    before.hidden = !canBefore;
    before.textContent = this.ascending ? 'Load older' : 'Back to the newest';
    after.hidden = !canAfter || shown.length === 0;
    after.textContent = this.busy ? 'Loading' : this.ascending ? 'Load newer' : 'Load older';
    after.disabled = this.busy;
    $('rows').setAttribute('aria-busy', String(this.busy));
    $('pause').setAttribute('aria-pressed', String(this.paused));
    $('pause').textContent = this.paused ? 'Go on' : 'Pause';
    $('fresh').hidden = this.fresh === 0;
    $('fresh').textContent = `${numbers.format(this.fresh)} new`;
    this.#renderEmpty(shown.length === 0);
  }

  #renderEmpty(isEmpty) {
    const empty = $('empty');
    empty.hidden = !isEmpty || !$('list-problem').hidden;
    if (this.busy) empty.textContent = 'Looking for events';
    else if (this.ascending) empty.textContent = 'This aggregate has no events.';
    else empty.textContent = this.isFiltered ? 'No event passes this filter.' : 'This store has no events yet.';
  }
}

function rowOf(event, ascending) {
  const open = { event: event.id };
  const cell = (column, ...children) => element('td', { role: 'cell', class: `c-${column}` }, ...children);
  const version = link(open, { class: 'open', tabindex: '-1', 'aria-label': `Event ${event.version}` }, String(event.version));
  const [versionCell, revisionCell] = [cell('version', version), cell('revision', String(event.revision))];
  versionCell.classList.add('number');
  revisionCell.classList.add('number');
  const type = cell('type', name(event.type));
  const time = cell('time', timeOf(event.recordedAt));
  const data = cell('data', name(event.preview, IN_A_LINE));
  if (event.size > PREVIEW) data.prepend(element('span', {}, `${bytesText(event.size)} `));
  const row = element('tr', { role: 'row' });
  if (ascending) {
    row.append(revisionCell, versionCell, time, type, data);
  } else {
    const history = link({ history: event.aggregate, event: null }, { tabindex: '-1' }, name(event.aggregate));
    history.setAttribute('aria-label', `History of ${escaped(event.aggregate)}`);
    row.append(versionCell, time, type, cell('aggregate', history), data);
  }
  row.event = event;
  return row;
}

/** Says which row is open, and which one the Tab key reaches. */
function markRows() {
  const rows = [...$('rows').children];
  const focused = rows.find((row) => row.contains(document.activeElement));
  const open = rows.find((row) => row.event.id === detail.id);
  const reached = focused ?? rows.find((row) => row.isReached) ?? open ?? rows[0];
  for (const row of rows) {
    row.isReached = row === reached;
    for (const each of row.querySelectorAll('a')) each.tabIndex = row === reached ? 0 : -1;
    if (row === open) row.setAttribute('aria-current', 'true');
    else row.removeAttribute('aria-current');
  }
}

$('rows').addEventListener('focusin', (event) => {
  for (const row of $('rows').children) row.isReached = row.contains(event.target);
  markRows();
});
$('rows').addEventListener('focusout', () => setTimeout(() => list?.flush()));
// A finger is on a row only to use it.
let isPointed = false;
$('rows').addEventListener('pointerenter', (event) => {
  isPointed = event.pointerType === 'mouse';
});
$('rows').addEventListener('pointerleave', () => {
  isPointed = false;
  list?.flush();
});
$('rows').addEventListener('click', (event) => {
  const row = event.target.closest('tr');
  if (!row || event.target.closest('a') || !getSelection().isCollapsed) return;
  go({ event: row.event.id });
});

let isScrolled = false;
new IntersectionObserver((entries) => {
  isScrolled = !entries.at(-1).isIntersecting;
  if (!isScrolled) list?.flush();
}, { rootMargin: '40px' }).observe($('top'));

/** Loads the same list anew. */
function reload() {
  const { filters, history: aggregate } = view();
  openList(list.key, { filters, aggregate });
}

function showFresh() {
  if (list.newer && !list.ascending) {
    reload();
  } else if (list.newer) {
    list.load('newer');
  } else {
    list.paused = false;
    list.flush({ force: true });
  }
  $('top').scrollIntoView({ block: list.ascending ? 'nearest' : 'center' });
  $('events').focus({ preventScroll: true });
}

$('fresh').addEventListener('click', showFresh);
$('pause').addEventListener('click', togglePause);
$('load-before').addEventListener('click', () => (list.ascending ? list.load('older') : showFresh()));
$('load-after').addEventListener('click', () => list.load(list.ascending ? 'newer' : 'older'));

function togglePause() {
  list.paused = !list.paused;
  list.flush();
}

// ---------------------------------------------------------------- filters

function fillForm(filters) {
  const values = new Map(filters);
  for (const input of $('filters').querySelectorAll('input')) {
    const value = values.get(input.name) ?? '';
    input.value = input.type === 'datetime-local' ? inputTime(value) : value;
    input.was = input.value;
  }
  if (filters.length > 0) $('filter-details').open = true;
}

$('filters').addEventListener('submit', (event) => {
  event.preventDefault();
  const old = new Map(view().filters);
  const changes = { event: null };
  for (const { name: key, type, value, was } of $('filters').querySelectorAll('input')) {
    // A time of the address may be finer than what the field shows.
    if (value === was) changes[key] = old.get(key);
    else changes[key] = value && type === 'datetime-local' ? utcTime(value) : value;
  }
  go(changes);
});

$('clear').addEventListener('click', () => {
  go(Object.fromEntries([...FILTERS, 'event'].map((each) => [each, null])));
  fillForm([]);
});

// Types that were seen, without those that could deceive.
$('filters').elements.type.addEventListener('focus', () => {
  const types = new Set(list.events.map(({ type }) => type).filter((type) => escaped(type) === type));
  $('types').replaceChildren(...[...types].sort().slice(0, 50).map((type) => element('option', { value: type })));
});

// ---------------------------------------------------------------- following

/** Follows the store until the list is another: over again after each lost connection, from the last event on. */
async function follow(list) {
  let wait = FIRST_WAIT;
  for (let isFirst = true; !list.signal.aborted; isFirst = false) {
    let problem;
    try {
      await whileAsleep(list.signal);
      if (list.signal.aborted) return;
      if (!(await isSameHistory(list, isFirst))) return reload();
      await listen(list, () => {
        wait = FIRST_WAIT;
        setState('live', 'Live');
      });
      continue; // The page was hidden.
    } catch (error) {
      problem = error;
    }
    if (list.signal.aborted) return;
    if (!problem.passes) {
      setState('ended', `Ended: ${problemText(problem)}`);
      return;
    }
    setState('reconnecting', `Reconnecting: ${problemText(problem)}`);
    await Promise.race([sleep(wait + Math.random() * wait, list.signal), once(window, 'online', list.signal)]);
    wait = Math.min(wait * 2, LONGEST_WAIT);
  }
}

/**
 * Whether to go on from the last event: the store still has the history that the list shows, and has not gone on so far that
 * loading its newest events is better.
 */
async function isSameHistory(list, isFirst) {
  const { version, cursor } = await jsonFrom('latest?cursor', list.signal);
  if (!isFirst && version < list.head) return false;
  if (!isFirst && list.cursor) {
    try {
      await textFrom(`events?since=${encodeURIComponent(list.cursor)}&limit=1&page_events=1`, list.signal);
    } catch (error) {
      if (error.code === 'history_diverged') return false;
      throw error;
    }
  }
  list.cursor = cursor;
  return isFirst || list.ascending || version - list.head < FAR_BEHIND;
}

/** Reads the stream of events. Ends when the page has been hidden for a while, or with a problem. */
async function listen(list, isOpen) {
  const connection = new AbortController();
  const end = () => connection.abort();
  list.signal.addEventListener('abort', end);
  let isAsleep = false;
  const asleep = () => {
    isAsleep = true;
    end();
  };
  let sleeper = document.hidden ? setTimeout(asleep, ASLEEP_AFTER) : null;
  const hidden = () => {
    clearTimeout(sleeper);
    sleeper = document.hidden ? setTimeout(asleep, ASLEEP_AFTER) : null;
  };
  document.addEventListener('visibilitychange', hidden);
  let watchdog = setTimeout(end, SILENCE);
  try {
    const path = `follow?${list.query({ since: list.head })}`;
    const response = await request(path, { accept: 'text/event-stream', signal: connection.signal });
    isOpen();
    for await (const { kind, id, data } of messagesOf(response, () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(end, SILENCE);
    })) {
      if (list.signal.aborted) return;
      if (kind === 'event') list.arrive(Number(id), data);
      // Everything that matches up to there has come.
      else if (kind === 'heartbeat') list.head = Math.max(list.head, id);
      else if (kind === 'end') throw new Problem(JSON.parse(data));
    }
    throw new Problem({ detail: 'The connection was lost.' });
  } catch (error) {
    if (isAsleep || list.signal.aborted) return;
    throw error instanceof Problem || error instanceof SyntaxError ? error : new Problem({ detail: 'The connection was lost.' });
  } finally {
    clearTimeout(watchdog);
    clearTimeout(sleeper);
    document.removeEventListener('visibilitychange', hidden);
    list.signal.removeEventListener('abort', end);
    end();
  }
}

/** The messages of a stream of server-sent events. */
async function* messagesOf(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = []; // of the line that has no end yet
  let message = {};
  let since = performance.now();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    let from = 0;
    for (let end = value.indexOf('\n'); end >= 0; end = value.indexOf('\n', from)) {
      const line = pieces.length ? pieces.join('') + value.slice(from, end) : value.slice(from, end);
      pieces = [];
      from = end + 1;
      if (line === '' || line === '\r') {
        if (message.data !== undefined) yield { kind: message.event ?? 'message', id: message.id, data: message.data };
        message = {};
        continue;
      }
      if (/^: ?\d+\r?$/.test(line)) {
        yield { kind: 'heartbeat', id: parseInt(line.slice(1), 10) };
        continue;
      }
      const [, field, text] = /^([^:]*):? ?([^]*?)\r?$/.exec(line) ?? [];
      if (field === 'data' && message.data !== undefined) message.data += `\n${text}`;
      else if (field) message[field] = text;
    }
    if (from < value.length) pieces.push(value.slice(from));
    // The page stays usable while very many events come.
    if (performance.now() - since > 20) {
      await sleep(0);
      since = performance.now();
    }
  }
}

async function whileAsleep(signal) {
  if (!document.hidden || $('state').dataset.state === 'connecting') return;
  setState('paused', 'Waiting while the page is hidden');
  while (document.hidden && !signal.aborted) await once(document, 'visibilitychange', signal);
}

const once = (target, kind, signal) =>
  new Promise((resolve) => {
    target.addEventListener(kind, resolve, { once: true, signal });
    signal.addEventListener('abort', resolve, { once: true });
  });

// ---------------------------------------------------------------- one event

const detail = { id: null, stopper: new AbortController() };
let preferred = 'Pretty';

async function showDetail(id) {
  detail.stopper.abort();
  detail.stopper = new AbortController();
  const { signal } = detail.stopper;
  const before = detail.id;
  detail.id = id;
  const pane = $('detail');
  pane.hidden = id === null;
  markRows();
  if (id === null) {
    $('detail-body').replaceChildren();
    const row = [...$('rows').children].find((each) => each.event.id === before) ?? $('rows').firstChild;
    (row?.querySelector('a.open') ?? $('events')).focus({ preventScroll: true });
    return;
  }
  $('detail-title').textContent = 'Event';
  const body = $('detail-body');
  body.replaceChildren(element('p', { class: 'muted' }, 'Loading'));
  $('detail-title').focus({ preventScroll: true });
  try {
    const event = readEvent(await textFrom(`event?${new URLSearchParams({ id })}`, signal));
    if (signal.aborted) return;
    $('detail-title').textContent = `Event ${event.version}`;
    body.replaceChildren(factsOf(event), ...contentView('Data', event.data, event, signal), ...contentView('Metadata', event.metadata, event, signal));
    body.scrollTop = 0;
  } catch (error) {
    if (signal.aborted) return;
    const place = element('div', { class: 'alert', role: 'alert' });
    tell(place, error, button('Try again', () => showDetail(id)));
    body.replaceChildren(place);
  }
}

function facts(place, pairs) {
  place.replaceChildren(...pairs.flatMap(([term, value]) => [element('dt', {}, term), element('dd', {}, value)]));
  return place;
}

function factsOf(event) {
  return facts(element('dl', { class: 'facts' }), [
    ['Id', name(event.id)],
    ['Type', name(event.type)],
    ['Aggregate', link({ history: event.aggregate }, {}, name(event.aggregate))],
    ['Revision', numbers.format(event.revision)],
    ['Version', numbers.format(event.version)],
    ['Recorded', element('time', { datetime: event.recordedAt }, localText(event.recordedAt))],
    ['', element('span', { class: 'muted' }, `${event.recordedAt.replace('T', ' ').replace('Z', '')} UTC`)],
  ]);
}

/** A content with the ways to look at it. Only its beginning is drawn; more is when asked for. */
function contentView(title, content, event, signal) {
  const head = element('div', { class: 'content-head' }, element('h3', {}, title));
  if (!content || content.json === '{}') {
    head.append(element('span', { class: 'muted' }, content ? 'none' : 'empty'));
    return [head];
  }
  const size = sizeOf(content);
  let bytes = null;
  const asBytes = () => (bytes ??= content.json === undefined ? bytesOf(content.base64) : new TextEncoder().encode(content.json));
  const text = content.json ?? textOf(asBytes());
  const ways = { Hex: () => hexPieces(asBytes()) };
  if (text !== null) ways.Raw = () => rawPieces(text);
  if (text !== null && (content.json !== undefined || isJson(text))) ways.Pretty = () => prettyPieces(text);

  const kind = ways.Pretty ? 'JSON' : ways.Raw ? 'text' : 'binary';
  head.append(element('span', { class: 'muted' }, `${kind}, ${bytesText(size)}`), element('span', { class: 'space' }));
  const place = element('pre', { class: 'content', tabindex: '0', role: 'region', 'aria-label': `${title} of event ${event.version}` });
  const below = element('p', { class: 'below' });
  const buttons = ['Pretty', 'Raw', 'Hex'].filter((way) => ways[way]).map((way) => button(way, () => choose(way)));
  const group = element('span', { role: 'group', 'aria-label': `${title} as` }, ...buttons);
  head.append(group, button('Download', () => download(asBytes(), `event-${event.version}-${title.toLowerCase()}`), { 'aria-label': `Download ${title.toLowerCase()}` }));

  let stopper = new AbortController();
  signal.addEventListener('abort', () => stopper.abort());

  function choose(way, isDefault = false) {
    if (!isDefault) preferred = way;
    for (const each of buttons) each.setAttribute('aria-pressed', String(each.textContent === way));
    stopper.abort();
    stopper = new AbortController();
    place.replaceChildren();
    place.className = `content ${way.toLowerCase()}`;
    grow(ways[way](), 0, { shown: 0, coloured: MOST_COLOURED, marks: MOST_MARKS }, stopper.signal);
  }

  /** Draws the next step of a way's pieces, without holding up the page. */
  async function grow(pieces, step, budget, stopped) {
    below.replaceChildren(step > 0 ? 'Drawing' : '');
    const isDone = await draw(place, pieces, STEPS[step], budget, stopped);
    if (stopped.aborted) return;
    below.replaceChildren();
    if (isDone) return;
    below.append(`Only the beginning is shown, of ${bytesText(size)}. `);
    if (step + 1 < STEPS.length) below.append(button('Show more', () => grow(pieces, step + 1, budget, stopped)));
    else below.append('Download it to see the rest.');
  }

  choose(ways[preferred] ? preferred : ways.Pretty ? 'Pretty' : ways.Raw ? 'Raw' : 'Hex', true);
  return [head, place, below];
}

/** Draws pieces until `limit` characters are shown. The answer says whether these were all. */
async function draw(place, pieces, limit, budget, signal) {
  const BLOCK = 16 << 10;
  let block = null;
  let inBlock = BLOCK;
  let since = performance.now();
  for (;;) {
    if (budget.shown >= limit) return false;
    const { done, value } = pieces.next();
    if (done) return true;
    if (inBlock >= BLOCK && (value.starts || inBlock >= 4 * BLOCK || !block)) {
      block = element('div', { class: 'block' });
      place.append(block);
      inBlock = 0;
    }
    let parent = block;
    if (value.kind && budget.coloured > 0) {
      parent = element('bdi', { class: value.kind });
      block.append(parent);
      budget.coloured -= value.text.length;
    }
    appendText(parent, value.text, IN_LINES, budget);
    budget.shown += value.text.length;
    inBlock += value.text.length;
    if (performance.now() - since > 12) {
      await sleep(0);
      if (signal.aborted) return false;
      since = performance.now();
    }
  }
}

/** A text in slices, none of which ends within a character. */
function* slicesOf(text, from = 0, to = text.length) {
  const SLICE = 4 << 10;
  while (from < to) {
    let end = Math.min(from + SLICE, to);
    if (end < to && (text.charCodeAt(end - 1) & 0xfc00) === 0xd800) end += 1;
    yield text.slice(from, end);
    from = end;
  }
}

function* rawPieces(text) {
  let starts = true;
  for (const slice of slicesOf(text)) {
    yield { text: slice, starts };
    starts = slice.endsWith('\n');
  }
}

/** JSON with a line for each member and element; the values themselves stay as they were written. */
function* prettyPieces(text) {
  let [at, depth] = [afterSpace(text, 0), 0];
  const line = () => `\n${'  '.repeat(Math.min(depth, DEEPEST_INDENT))}`;
  let isFirst = true; // of an object or array
  while (at < text.length) {
    const [char, end] = [text[at], endOfToken(text, at)];
    const next = afterSpace(text, end);
    if (char === '}' || char === ']') {
      depth -= 1;
      yield { text: isFirst ? char : line() + char };
      isFirst = false;
    } else if (char === ',') {
      yield { text: `,${line()}` };
    } else if (char === ':') {
      yield { text: ': ' };
    } else {
      if (isFirst && depth > 0) yield { text: line(), starts: true };
      isFirst = false;
      if (char === '{' || char === '[') {
        depth += 1;
        isFirst = true;
        yield { text: char };
      } else {
        const kind = char !== '"' ? 'literal' : text[next] === ':' ? 'key' : 'string';
        for (const slice of slicesOf(text, at, end)) yield { text: slice, kind };
      }
    }
    at = next;
  }
}

function* hexPieces(bytes) {
  for (let at = 0; at < bytes.length; at += 16) {
    const line = bytes.subarray(at, at + 16);
    const seen = Array.from(line, (byte) => (byte > 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '·')).join('');
    yield { text: `${at.toString(16).padStart(8, '0')}  ${hex(line).padEnd(47)}  ${seen}\n`, starts: true };
  }
}

function download(bytes, file) {
  const url = URL.createObjectURL(new Blob([bytes], { type: 'application/octet-stream' }));
  element('a', { href: url, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

const closeDetail = () => go({ event: null });
$('close').addEventListener('click', closeDetail);

// ---------------------------------------------------------------- rates, sizes, the server

const samples = []; // { at, version, aggregates, bytes, rate }

async function watchStats(signal) {
  while (!signal.aborted) {
    if (document.hidden) await once(document, 'visibilitychange', signal);
    try {
      showStats(await jsonFrom('stats', signal));
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      // What passes is told by the state of the connection.
      if (!error.passes) tell($('problem'), error);
    }
    await sleep(STATS_EVERY, signal);
  }
}

function showStats(stats) {
  const at = performance.now();
  const last = samples.at(-1);
  const isNext = last && stats.latest_version >= last.version && at - last.at < 10 * STATS_EVERY;
  if (last && !isNext) samples.length = 0;
  const rate = isNext ? ((stats.latest_version - last.version) * 1000) / (at - last.at) : null;
  samples.push({ at, version: stats.latest_version, aggregates: stats.aggregates, bytes: stats.bytes_on_disk, rate });
  if (samples.length > STATS_KEPT) samples.shift();

  const rateText = (value) => numbers.format(value < 10 ? Math.round(value * 10) / 10 : Math.round(value));
  chart('rate', samples.slice(1).map(({ at, rate }) => [at, rate]), rateText, { zero: true, range: (_, high) => `highest ${rateText(high)}` });
  chart('count', samples.map(({ at, version }) => [at, version]), numbers.format, { range: grown(numbers.format) });
  chart('aggregates', samples.map(({ at, aggregates }) => [at, aggregates]), numbers.format, { range: grown(numbers.format) });
  chart('disk', samples.filter(({ bytes }) => bytes !== null).map(({ at, bytes }) => [at, bytes]), bytesText, { range: grown(bytesText) });
  if (stats.bytes_on_disk === null) $('disk').textContent = 'in memory';

  $('fenced').hidden = !stats.fenced;
  if (stats.fenced && $('fenced').reason !== stats.fenced) {
    $('fenced').replaceChildren(element('strong', {}, 'This store takes no more events. '));
    appendText($('fenced'), stats.fenced, IN_A_NAME);
    $('fenced').append(' It can be read. Find the cause, and then open it again.');
    $('fenced').reason = stats.fenced;
  }
  showServer(stats);
}

const grown = (text) => (first, _, last) => (last === first ? 'unchanged' : `${last > first ? '+' : '−'}${text(Math.abs(last - first))}`);

/** A small curve, and beside it its last value as text. */
function chart(id, points, text, { zero = false, range }) {
  const place = $(`${id}-chart`);
  if (points.length === 0) {
    $(id).textContent = '–';
    place.replaceChildren();
    place.setAttribute('aria-hidden', 'true');
    return;
  }
  const values = points.map(([, value]) => value);
  const [first, last, high] = [values[0], values.at(-1), Math.max(...values)];
  const low = zero ? 0 : Math.min(...values);
  const [start, end] = [points[0][0], points.at(-1)[0]];
  const width = Math.max(end - start, SHORTEST_CHART);
  const x = (at) => 100 - ((end - at) / width) * 100;
  const y = (value) => (high === low ? 29 : 29 - ((value - low) / (high - low)) * 28);
  const curve = points.map(([at, value]) => `${x(at).toFixed(2)},${y(value).toFixed(2)}`).join(' ');
  const span = Math.max(1, Math.round((end - start) / 1000));
  const told = `${range(first, high, last)} in the last ${span < 120 ? `${span} s` : `${Math.round(span / 60)} min`}`;
  $(id).textContent = text(last);
  $(`${id}-range`).textContent = points.length > 1 ? told : '';
  for (const [key, value] of Object.entries({ viewBox: '0 0 100 30', preserveAspectRatio: 'none', role: 'img' })) place.setAttribute(key, value);
  place.removeAttribute('aria-hidden');
  place.setAttribute('aria-label', `Now ${text(last)}, ${told}`);
  place.replaceChildren(svg('path', { d: `M${x(start).toFixed(2)},30 L${curve.replaceAll(' ', ' L')} L100,30 Z` }), svg('polyline', { points: curve }));
}

function showServer(stats) {
  const { server } = stats;
  const group = stats.commits > 0 ? (stats.events_written / stats.commits).toFixed(1) : '–';
  facts($('server-facts'), [
    ['Backend', name(String(stats.backend))],
    ...(server
      ? [
          ['Running for', durationText(server.uptime_seconds)],
          ['Followers', numbers.format(server.followers)],
          ['Sessions', numbers.format(server.sessions)],
        ]
      : []),
    ['Waiting appends', `${numbers.format(stats.queued_requests)} (${bytesText(stats.queued_bytes)})`],
    ['Events written since start', numbers.format(stats.events_written)],
    ['Commits', numbers.format(stats.commits)],
    ['Events per commit', group],
    ['Largest commit', numbers.format(stats.largest_group)],
    ['Appends', stats.fenced ? 'refused' : 'accepted'],
  ]);
  const jobs = server?.jobs ?? [];
  $('jobs').replaceChildren(
    ...jobs.map(({ kind, done, total, started }) => {
      const part = total > 0 ? `${numbers.format(done)} of ${numbers.format(total)} (${Math.floor((done / total) * 100)} %)` : 'running';
      const item = element('li', {}, name(String(kind)), ` ${part}`);
      if (started) item.append(', since ', element('time', { datetime: started }, clockText(new Date(started))));
      const progress = element('progress', { 'aria-label': `${escaped(String(kind))}: ${part}` });
      if (total > 0) Object.assign(progress, { max: total, value: done });
      item.append(progress);
      return item;
    }),
    ...(jobs.length ? [] : [element('li', { class: 'muted' }, 'Nothing is running.')]),
  );
  const properties = Object.entries(stats.engine ?? {});
  $('engine').hidden = properties.length === 0;
  facts($('engine-facts'), properties.map(([key, value]) => [name(key), typeof value === 'number' ? numbers.format(value) : name(String(value))]));
}

// ---------------------------------------------------------------- many stores

/** A server of many stores has none at its root, but a list of them. */
function showStores({ stores }) {
  showOnly('stores');
  setState('live', 'Connected');
  $('store-list').replaceChildren(
    ...stores.map((store) => {
      // `.` and `..` would lead elsewhere.
      const isPlain = !/^\.{1,2}$/.test(store);
      return element('li', {}, isPlain ? element('a', { href: new URL(`stores/${encodeURIComponent(store)}/`, BASE).href }, name(store)) : element('span', {}, name(store)));
    }),
    ...(stores.length ? [] : [element('li', { class: 'muted' }, element('span', {}, 'There are no stores that you may read.'))]),
  );
}

// ---------------------------------------------------------------- keys

const wantsText = (target) => target.closest?.('input, textarea, select, [contenteditable]') && target.type !== 'checkbox';

function moveTo(pick) {
  const rows = [...$('rows').children];
  if (rows.length === 0) return;
  const at = rows.findIndex((row) => row.isReached);
  const isIn = $('rows').contains(document.activeElement);
  const index = Math.max(0, Math.min(rows.length - 1, isIn || detail.id !== null ? pick(at, rows.length) : at));
  rows[index].querySelector('a.open').focus();
}

const MOVES = {
  j: (at) => at + 1,
  k: (at) => at - 1,
  ArrowDown: (at) => at + 1,
  ArrowUp: (at) => at - 1,
  PageDown: (at) => at + 10,
  PageUp: (at) => at - 10,
  Home: () => 0,
  End: (_, length) => length - 1,
};

document.addEventListener('keydown', (event) => {
  if ($('app').hidden || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { key, target } = event;
  if (key === 'Escape') {
    if (detail.id !== null) closeDetail();
    else if (wantsText(target)) $('events').focus({ preventScroll: true });
    return;
  }
  if (wantsText(target)) return;
  const inRows = $('rows').contains(target);
  const mayPress = $('keys').checked;
  if (MOVES[key] && (key.length > 1 ? inRows : mayPress)) {
    moveTo(MOVES[key]);
  } else if (key === '/' && mayPress && !$('search').hidden) {
    $('filter-details').open = true;
    $('filters').elements.aggregate.focus();
  } else if (key === 'p' && mayPress) {
    togglePause();
  } else {
    return;
  }
  event.preventDefault();
});

$('keys').checked = localStorage.getItem('eventstore-keys') !== 'off';
$('keys').addEventListener('change', () => localStorage.setItem('eventstore-keys', $('keys').checked ? 'on' : 'off'));

// ---------------------------------------------------------------- the start

let stopper = new AbortController();

function stopAll() {
  stopper.abort();
  detail.stopper.abort();
  if (detail.id !== null) detail.id = undefined; // to be loaded anew
  list?.stop();
  list = null;
}

async function start() {
  stopAll();
  stopper = new AbortController();
  const { signal } = stopper;
  samples.length = 0;
  setState('connecting', 'Connecting');
  $('forget').hidden = sessionStorage.getItem(TOKEN) === null;
  $('token').hidden = true;
  tell($('problem'), null);
  for (let wait = FIRST_WAIT; !signal.aborted; wait = Math.min(wait * 2, LONGEST_WAIT)) {
    try {
      const info = await jsonFrom('./', signal);
      if (info.stores) return showStores(await jsonFrom(info.stores, signal));
      showStore(info);
      break;
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      tell($('problem'), error);
      setState(error.passes ? 'reconnecting' : 'ended', error.passes ? 'Reconnecting' : 'Ended');
      if (!error.passes) {
        $('again').hidden = false;
        return;
      }
      await sleep(wait, signal);
    }
  }
  if (signal.aborted) return;
  tell($('problem'), null);
  showOnly('app');
  route();
  watchStats(signal);
}

function showStore({ name: store, backend, server }) {
  const title = store ?? location.host;
  $('store').replaceChildren(name(title));
  document.title = `${escaped(title)} – eventstore`;
  $('backend').textContent = escaped([backend, server].filter(Boolean).join(', eventstore '));
  $('all-stores').hidden = !store;
  $('all-stores').href = new URL('../../', BASE).href;
}

// A page that the browser keeps for its back button must not keep connections.
addEventListener('pagehide', stopAll);
addEventListener('pageshow', (event) => {
  if (event.persisted) start();
});

$('filter-details').open = matchMedia('(min-width: 1001px)').matches;
start();
