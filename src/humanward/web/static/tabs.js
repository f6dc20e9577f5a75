// One tab of a labeler asks questions at a time; the others wait, and may take over.

import { kept, newId } from "./outbox.js";

const BEAT = 2_000;
const STALE = 7_000;

// gained(): this tab asks now. lost(): another one does. Returns take(), which makes this tab the one.
export function oneTab(labeler, gained, lost) {
  return navigator.locks ? byLock(`humanward label ${labeler}`, gained, lost) : byLease(`humanward:tab:${labeler}`, gained, lost);
}

function byLock(name, gained, lost) {
  const hold = () => {
    gained();
    return new Promise(() => {}); // until the tab is closed or the lock is stolen
  };
  const request = (options) =>
    navigator.locks.request(name, options, (lock) => (lock ? hold() : false)).then(
      (held) => {
        if (held !== false) return;
        lost();
        request({}); // in line: the turn comes when the other tab closes
      },
      () => {
        lost();
        request({});
      },
    );
  request({ ifAvailable: true });
  return () => request({ steal: true });
}

// Without locks (plain http): a lease in localStorage, renewed while the tab lives.
function byLease(key, gained, lost) {
  const me = newId();
  let mine = null;
  const look = (force = false) => {
    const holder = kept.get(key);
    const free = force || !holder || holder.tab === me || Date.now() - holder.time > STALE;
    if (free) kept.set(key, { tab: me, time: Date.now() });
    if (free !== mine) (mine = free) ? gained() : lost();
  };
  addEventListener("storage", (event) => event.key === key && look());
  addEventListener("pagehide", () => mine && kept.set(key, null));
  setInterval(look, BEAT);
  look();
  return () => look(true);
}
