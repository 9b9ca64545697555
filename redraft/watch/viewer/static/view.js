// The page of `redraft view`. All text of a run becomes text nodes or attributes, never markup.

const POLL_MS = 3000;
const MARKS = { r: ["✓", "right"], w: ["✗", "wrong"], e: ["!", "error"], "-": ["–", "soft"], ".": ["·", "soft"] };
const LEGEND = [
  "The stronger a token's shade, the more it weighs in the step's loss: ", ["blue", "up"],
  " where its turn's advantage is above zero, ", ["orange", "down"], " where it is below, ", ["grey", "even"],
  " at zero; tokens without shade were not trained, those ", ["underlined with dots", "authored"],
  " were not sampled by the policy, and hovering over one shows its numbers.",
];
const $ = (id) => document.getElementById(id);
const filters = $("filters");
const wide = matchMedia("(min-width: 761px)");
let page = 0, pages = 1, asked = 0, shown = "", opened = "";

function make(tag, kind = "", ...inside) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...inside.filter((one) => one !== null && one !== ""));
  return made;
}

async function ask(path, query) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok && answer.status !== 404) throw new Error(await answer.text());
  return answer.text();
}

// The list of groups ----------------------------------------------------------------------------------------------

async function list() {
  const mine = ++asked;
  let text;
  try {
    text = await ask("/api/groups", { ...Object.fromEntries(new FormData(filters)), page });
  } catch (error) {
    return note(`The viewer does not answer: ${error.message}`);
  }
  if (mine !== asked || text === shown) return; // asked again meanwhile, or nothing is new
  shown = text;
  const found = JSON.parse(text);
  ({ page, pages } = found);
  document.title = `${found.run} · Redraft`;
  $("run").textContent = found.run;
  $("facts").textContent = `${found.total} of ${found.kept} groups that were kept`;
  note(found.kept ? found.problem : "No turns are kept yet; learner.record in the recipe says how many are.");
  label(found.labels);
  $("groups").replaceChildren(...found.groups.map(item));
  $("place").textContent = `page ${page + 1} of ${pages}`;
  $("newer").disabled = page === 0;
  $("older").disabled = page + 1 >= pages;
  if (!location.hash && wide.matches && found.groups.length) history.replaceState(null, "", `#${found.groups[0].key}`);
  read();
}

function note(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

function label(labels) {
  const known = new Set([...filters.label.options].map((option) => option.value));
  filters.label.append(...labels.filter((one) => !known.has(one)).map((one) => new Option(one, one)));
}

function item(head) {
  const button = make("button", "", top(head), marks(head.marks));
  button.type = "button";
  button.dataset.key = head.key;
  button.setAttribute("aria-current", head.key === opened);
  button.addEventListener("click", () => { location.hash = head.key; });
  return make("li", "", button);
}

function top(head) {
  const chip = head.label === "training" ? null : make("span", "chip", head.label);
  const step = make("span", "soft", `step ${head.step}`);
  return make("span", "top", make("span", "task", head.task || "?"), chip, step);
}

function marks(episodes) {
  return make("span", "marks", ...episodes.map((episode) => make("span", "", ...[...episode].map(mark))));
}

function mark(letter) {
  const [sign, kind] = MARKS[letter] ?? MARKS["-"];
  return make("span", kind, sign);
}

function turnPage(by) {
  page = Math.max(0, page + by);
  list().then(() => { $("groups").scrollTop = 0; });
}

// One group -------------------------------------------------------------------------------------------------------

async function read() {
  const key = decodeURIComponent(location.hash.slice(1));
  document.body.classList.toggle("reading", Boolean(key));
  for (const button of $("groups").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.key === key);
  }
  if (key === opened) return;
  opened = key;
  if (!key) return $("group").replaceChildren();
  const found = await ask("/api/group", { key }).then(JSON.parse).catch((error) => ({ problem: error.message }));
  if (key !== opened) return; // another was chosen meanwhile
  $("group").replaceChildren(back(), ...(found.problem ? [make("p", "", found.problem)] : whole(found)));
  $("group").scrollTop = 0;
}

function back() {
  const button = make("button", "", "‹ all groups");
  button.id = "back";
  button.type = "button";
  button.addEventListener("click", () => { location.hash = ""; });
  return button;
}

function whole(group) {
  const facts = [`step ${group.step}`, group.label, `${group.size} turns`, `${group.tokens} tokens of responses`];
  if (group.picked === "error") facts.push("kept for its error");
  if (group.group) facts.push(`group ${group.group.slice(0, 8)}`);
  const legend = make("p", "legend", ...LEGEND.map((part) => (Array.isArray(part) ? swatch(...part) : part)));
  const head = make("header", "", make("h2", "", group.task || "?"), make("p", "soft", facts.join(" · ")));
  head.append(marks(group.marks), legend);
  return [head, ...tree(group.turns)];
}

function swatch(text, kind) {
  const made = make("span", `t ${kind}`, text);
  if (kind !== "authored") made.style.setProperty("--w", 0.5);
  return made;
}

// A chain of turns is a list; where a turn has several that follow, each of them begins a branch, further in.
function tree(turns) {
  const above = (turn) => (turn.parent >= 0 ? turn.parent : turn.after);
  const below = new Map(turns.map((turn) => [turn.turn, []]));
  const roots = turns.filter((turn) => !below.get(above(turn))?.push(turn));
  const boxes = roots.map((root) => make("section", "root",
    roots.length > 1 ? make("h3", "", `episode ${root.episode + 1}`) : null));
  const left = roots.map((root, place) => [root, boxes[place]]);
  while (left.length) {
    const [turn, box] = left.pop();
    box.append(card(turn));
    const next = below.get(turn.turn);
    for (const one of next) {
      const inside = next.length > 1 ? make("div", "branch") : box;
      if (inside !== box) box.append(inside);
      left.push([one, inside]);
    }
  }
  return boxes;
}

function card(turn) {
  const made = make("section", "turn", facts(turn));
  if (turn.prompt.length) made.append(said("what the environment said", "prompt", prompt(turn)));
  if (turn.response.length) made.append(said("response", "response", response(turn)));
  const more = Object.entries(turn.extra).filter(([, value]) => value !== null);
  if (more.length) made.append(make("p", "soft", more.map(([key, value]) => `${key}: ${plain(value)}`).join(" · ")));
  return made;
}

function facts(turn) {
  const seconds = ["queued", "generating", "environment"].map((what, place) => `${what} ${turn.timing[place] ?? "?"} s`);
  const versions = turn.versions.map(([start, version]) => (start ? `${version} from token ${start}` : `${version}`));
  const sampled = turn.logprobs.some((value) => value !== null);
  const parts = [
    mark(turn.mark),
    make("b", "", turn.role),
    `turn ${turn.turn}`,
    `reward ${turn.reward ?? "?"}`,
    turn.advantage === null ? "" : `advantage ${turn.advantage > 0 ? "+" : ""}${turn.advantage}`,
    versions.length ? `weights version ${versions.join(", ")}` : "",
    `stop ${turn.stop}`,
    seconds.join(", "),
    turn.parent < 0 && turn.after >= 0 ? `sees only this prompt, not turn ${turn.after}` : "",
    turn.terminated ? "terminated" : "",
    turn.truncated ? "truncated" : "",
    turn.response.length && !sampled ? make("span", "authored", "not sampled") : "",
  ];
  return make("div", "facts", ...parts.map((part) => (typeof part === "string" && part ? make("span", "", part) : part)));
}

function said(whose, kind, words) {
  const made = make("pre", kind, ...words);
  made.setAttribute("aria-label", whose);
  return made;
}

function prompt(turn) {
  const special = new Set(turn.prompt_special);
  return turn.prompt_words.map((word, place) => (special.has(place) ? make("span", "special", visible(word)) : word ?? ""));
}

function response(turn) {
  const special = new Set(turn.response_special);
  return turn.response.map((_, place) => token(turn, place, special.has(place)));
}

function token(turn, place, special) {
  const word = turn.response_words[place], weight = turn.weights?.[place] ?? 0, logprob = turn.logprobs[place];
  const made = make("span", "t", special ? visible(word) : word ?? "·");
  if (special) made.classList.add("special");
  if (logprob === null) made.classList.add("authored");
  if (weight > 0) {
    made.classList.add(turn.advantage > 0 ? "up" : turn.advantage < 0 ? "down" : "even");
    made.style.setProperty("--w", (0.85 * weight / (weight + 1)).toFixed(3));
  }
  made.title = [
    word === null ? "a part of the character that follows" : JSON.stringify(word),
    `id ${turn.response[place]}`,
    logprob === null ? "not sampled" : `log-prob ${logprob} (chance ${Math.exp(logprob).toPrecision(2)})`,
    turn.weights === null ? "not trained" : `weight ${weight}`,
  ].join("\n");
  return made;
}

// A special token shows itself, also one that is a line end.
function visible(word) {
  return (word ?? "·").replaceAll("\n", "↵\n");
}

function plain(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

filters.addEventListener("input", () => { page = 0; list(); });
filters.addEventListener("submit", (event) => event.preventDefault());
$("newer").addEventListener("click", () => turnPage(-1));
$("older").addEventListener("click", () => turnPage(1));
addEventListener("hashchange", read);
setInterval(() => { if (!document.hidden) list(); }, POLL_MS);
list();
