// A line runs over the picture while a clip plays. A click on the picture of one clip plays it from there; a click on
// the matrix plays half a second of clip A, then half a second of clip B. A click on a unit asks the page where else it
// stands; the answer is a sound of several segments, which buttons play one by one.
const SNIPPET = 0.5; // seconds

const shown = (node) => node.closest('.listen');

function moveLine(audio) {
    const sheet = shown(audio).querySelector('.sheet');
    if (!sheet) return;
    const [left, top, width, height] = sheet.dataset.box.split(' ').map(Number);
    const share = Math.min(audio.currentTime / Number(audio.dataset.seconds), 1);
    const line = sheet.querySelector('.line-' + audio.dataset.axis);
    line.hidden = false;
    if (audio.dataset.axis === 'y') {
        line.style.top = 100 * (top + share * height) + '%';
        line.style.width = 100 * (left + width) + '%';
        return;
    }
    line.style.left = 100 * (left + share * width) + '%';
    line.style.height = 100 * (top + height) + '%';
    const scroll = sheet.parentElement, place = (left + share * width) * sheet.clientWidth;
    const hidden = place < scroll.scrollLeft || place > scroll.scrollLeft + scroll.clientWidth - 40;
    if (!audio.paused && hidden) scroll.scrollLeft = place - 80;
}

function follow(audio) {
    if (!audio.isConnected) return;
    if (audio.currentTime >= Number(audio.dataset.until || Infinity)) audio.pause();
    moveLine(audio);
    if (!audio.paused) requestAnimationFrame(() => follow(audio));
}

function playFrom(audio, share, seconds) {
    const start = share * Number(audio.dataset.seconds);
    audio.currentTime = start;
    audio.dataset.until = start + seconds;
    return new Promise((done) => {
        audio.addEventListener('pause', done, { once: true });
        audio.play().catch(done);
    });
}

element.addEventListener('play', (event) => {
    for (const other of document.querySelectorAll('.listen audio')) if (other !== event.target) other.pause();
    follow(event.target);
}, true);
element.addEventListener('pause', (event) => { delete event.target.dataset.until; }, true);
element.addEventListener('seeked', (event) => moveLine(event.target), true);
element.addEventListener('click', async (event) => {
    const { unit, start, seconds } = event.target.dataset;
    if (unit) return trigger('click', { unit, start });
    if (event.target.closest('.segment')) {
        const audio = shown(event.target).querySelector('audio');
        return playFrom(audio, start / audio.dataset.seconds, Number(seconds));
    }
    const sheet = event.target.closest('.sheet');
    if (!sheet) return;
    const [left, top, width, height] = sheet.dataset.box.split(' ').map(Number);
    const frame = sheet.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width - left) / width;
    const y = ((event.clientY - frame.top) / frame.height - top) / height;
    if (x < 0 || x > 1) return;
    const rows = shown(sheet).querySelector('audio[data-axis=y]');
    const columns = shown(sheet).querySelector('audio[data-axis=x]');
    if (!rows) return playFrom(columns, x, Infinity);
    if (y < 0 || y > 1) return;
    await playFrom(rows, y, SNIPPET);
    await playFrom(columns, x, SNIPPET);
});
