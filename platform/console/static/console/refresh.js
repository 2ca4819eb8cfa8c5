/* Keeps the live part of a page moving: fetches the page again and swaps `#rc-live`, while it asks to be refreshed.
   Without JavaScript the page stays as it was loaded. Nobody's focus or typing is disturbed: forms lie outside, and a
   part that holds the focus waits. */
document.addEventListener("DOMContentLoaded", () => {
  const later = () => {
    const seconds = Number(document.querySelector("#rc-live")?.dataset.refresh);
    if (seconds) setTimeout(refresh, seconds * 1000);
  };
  const refresh = async () => {
    const live = document.querySelector("#rc-live");
    if (!document.hidden && !live.contains(document.activeElement)) {
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" } });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.querySelector("#rc-live");
        if (!answer.ok || !fresh) return; // signed out, or gone: leave what was seen
        const wasMoving = live.dataset.refresh;
        live.replaceWith(fresh);
        if (wasMoving && !fresh.dataset.refresh) return location.reload(); // it ended: show the rest of the page as it is now
      } catch {
        /* the console is away for a moment: try again */
      }
    }
    later();
  };
  later();
});
