"""What webshop promises: its pages and rewards to the letter, any text survived, tasks that can be solved and are the
same everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import msgpack
import numpy as np
import pytest
from support import little_shop
from support.little_shop import KETTLE, LAMP, POT
from support.places import PYTHONPATH
from support.rollout_house import House

from actors import environments, messages
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.webshop import pages, reward
from actors.environments.webshop.environment import INSTRUCTIONS, Webshop, catalogue
from actors.environments.webshop.products import Product
from actors.environments.webshop.search import Index
from actors.rollout_config import SearchSettings
from protocols.errors import SettingError
from protocols.turns import Role
from redraft.models.make import build_tokenizer

SETTINGS = EnvironmentSettings(name="webshop")
TOLD = "find a kettle that is easy to clean with color: red, and size: small, and price lower than 30.00 dollars"
TOP = f"Instruction: [SEP] {TOLD} [SEP] Back to Search [SEP] "
RICH_TOP = f"Instruction:\n{TOLD}\n[button] Back to Search [button_]\n"
ITEM = (
    f"{TOP}< Prev [SEP] color [SEP] red [SEP] blue | green [SEP] size [SEP] small [SEP] Whistling Kettle [SEP] "
    "Price: $10.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)
BOTH = f"{KETTLE} [SEP] Whistling Kettle [SEP] $10.0 [SEP] {POT} [SEP] Tea Pot with Kettle Lid [SEP] $12.5 to $1020.0"
TO_ITEM = ["search[kettle]", f"click[{KETTLE}]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(little_shop.write(tmp_path_factory.mktemp("shop")))


@pytest.fixture(scope="module")
def task(folder) -> dict:
    return {
        "id": "webshop/0",
        "products": folder,
        "asin": KETTLE,
        "instruction": TOLD,
        "attributes": ["easy to clean"],
        "options": [["color", "red"], ["size", "small"]],
        "limit": 30.0,
    }


def begin(task: dict, **options) -> tuple[Webshop, str]:
    environment = environments.make(EnvironmentSettings(name="webshop", options=options))
    assert isinstance(environment, Webshop)
    return environment, messages.asked(environment.reset(seed=0, options={"task": task})[0])


def play(environment: Webshop, actions: list[str]) -> list[tuple]:
    return [environment.step(action) for action in actions]


def made() -> list[dict]:
    return [task for split in ("train", "test") for task in environments.tasks(SETTINGS, DataSettings(), split)]


# --- pages


@pytest.mark.parametrize(
    ("actions", "page"),
    [
        ([], f"WebShop [SEP] Instruction: [SEP] {TOLD} [SEP] Search"),
        (["search[kettle]"], f"{TOP}Page 1 (Total results: 2) [SEP] Next > [SEP] {BOTH}"),
        (["search[kettle]", "click[Next >]"], f"{TOP}Page 2 (Total results: 2) [SEP] < Prev [SEP] Next >"),
        (["search[zeppelin]"], f"{TOP}Page 1 (Total results: 0) [SEP] Next >"),
        (TO_ITEM, ITEM),
        ([*TO_ITEM, "click[red]"], ITEM),
        ([*TO_ITEM, "click[Description]"], f"{TOP}< Prev [SEP] This kettle boils water."),
        ([*TO_ITEM, "click[Features]"], f"{TOP}< Prev [SEP] steel [SEP] has a whistle"),
        ([*TO_ITEM, "click[Reviews]"], f"{TOP}< Prev"),
        (["search[tea pot]", f"click[{POT}]", "click[description]"], f"{TOP}< Prev"),
        ([*TO_ITEM, "click[Buy Now]"], "Thank you for shopping with us!"),
    ],
)
def test_a_page_is_its_pieces_in_a_row(task, actions, page):
    environment, observation = begin(task)
    for action in actions:
        observation = environment.step(action)[0]
    assert observation == (page if actions else f"{INSTRUCTIONS}\n\n{page}")


def test_a_rich_page_has_a_piece_a_line_and_marks_what_was_chosen_and_visited(task):
    environment, observation = begin(task, mode="text_rich")
    assert observation.endswith(f"WebShop\nInstruction:\n{TOLD}\n[button] Search [button_]")
    *_, (results, *_), _, (item, *_) = play(environment, [*TO_ITEM, "click[< prev]", TO_ITEM[1], "click[red]"])
    assert results == (
        f"{RICH_TOP}Page 1 (Total results: 2)\n[button] Next > [button_]\n"
        f"\n[clicked button] {KETTLE} [clicked button_]\nWhistling Kettle\n$10.0\n"
        f"\n[button] {POT} [button_]\nTea Pot with Kettle Lid\n$12.5 to $1020.0"
    )
    assert item == (
        f"You have clicked red.\n{RICH_TOP}[button] < Prev [button_]\n"
        "color\n  [clicked button] red [clicked button_]\n  [button] blue | green [button_]\n"
        "size\n  [button] small [button_]\nWhistling Kettle\nPrice: $10.0\nRating: N.A.\n"
        "[button] Description [button_]\n[button] Features [button_]\n[button] Reviews [button_]\n"
        "[button] Buy Now [button_]"
    )


def test_what_can_be_done_is_listed_where_the_recipe_says_so(task):
    environment, observation = begin(task, list_actions=True)
    assert observation.endswith("Search\n\nAvailable actions: search[<words>]")
    *_, (item, *_) = play(environment, TO_ITEM)
    assert item == (
        f"{ITEM}\n\nAvailable actions: search[<words>], click[back to search], click[< prev], click[description], "
        "click[features], click[reviews], click[buy now], click[red], click[blue | green], click[small]"
    )
    assert environment.step("click[buy now]")[0] == "Thank you for shopping with us!"


# --- actions


@pytest.mark.parametrize(
    ("text", "answer", "refused"),
    [
        ("search[Kettle]", "search[kettle]", False),
        ("  search[kettle] and more", "search[kettle]", False),
        ("search[kettle]\nclick[x]", "search[kettle]", False),
        ("Thought: [hm]\nAction: search[kettle]", "search[kettle]", False),
        ("Action: wait\nThought: no\nAction: search[ ]", "search[ ]", False),
        ("search[a]]", "search[a]]", False),
        ("Action: wait", "wait", False),
        ("wait", "wait", False),
        ("click[search]", "click[search]", True),
        ("click[buy now]", "click[buy now]", True),
        ("click[]", None, True),
        ("[kettle]", None, True),
        ("Search[kettle]", None, True),
        ("search [kettle]", None, True),
        ("search[a] click[b]", None, True),
        ("search[kettle]\nAction:", None, True),
        ("search(kettle)", None, True),
        ("", None, True),
        ("search[" + "x" * 4000 + "]", None, True),
    ],
)
def test_an_action_is_what_follows_the_last_word_of_it_and_anything_else_is_refused(task, text, answer, refused):
    environment, first = begin(task)
    observation, worth, terminated, truncated, info = environment.step(text)
    assert (worth, terminated, truncated) == (0.0, False, False)
    assert info == {"success": False, "answer": answer, "refused": refused}
    if refused:
        assert first == f"{INSTRUCTIONS}\n\n{observation}"
    assert (observation == "ok.") == (answer == "wait")


def test_what_a_step_back_forgets(task):
    environment, _ = begin(task)
    (results, *_), (item, *_) = play(environment, TO_ITEM)
    chosen, sub, item_again = play(environment, ["click[red]", "click[features]", "click[< prev]"])
    assert chosen[0] == item_again[0] == item and environment.snapshot()["place"].options == (("color", "red"),)
    play(environment, ["click[blue | green]"])
    assert environment.snapshot()["place"].options == (("color", "blue | green"),), "one value of each"
    (back, *_), (item, *_) = play(environment, ["click[< Prev]", TO_ITEM[1]])
    assert back == results and not environment.snapshot()["place"].options
    (elsewhere, *_), (start, *_) = play(environment, ["search[lamp]", "click[back to search]"])
    assert LAMP in elsewhere and environment.snapshot()["place"] == pages.Place() and start.startswith("WebShop")


def test_an_episode_without_a_purchase_ends_after_its_steps_worth_nothing(task):
    environment, _ = begin(task, steps=3)
    assert [step[1:4] for step in play(environment, ["nonsense", *TO_ITEM])] == [
        (0.0, False, False),
        (0.0, False, False),
        (0.0, True, False),
    ]


@pytest.mark.parametrize("option", [{"steps": 0}, {"steps": "many"}, {"mode": "html"}, {"pages": 3}])
def test_an_option_that_cannot_be_is_refused_by_its_name(option):
    (name,) = option
    with pytest.raises(SettingError) as refused:
        environments.make(EnvironmentSettings(name="webshop", options=option))
    assert refused.value.setting == f"environment.options.{name}"


def test_only_the_first_episodes_wait_in_threads_for_the_shop_to_open(task, monkeypatch):
    monkeypatch.setattr(Webshop, "blocking", True)
    environment = environments.make(SETTINGS)
    assert environment.blocking
    environment.reset(seed=0, options={"task": task})
    assert not environment.blocking and not environments.make(SETTINGS).blocking


@pytest.mark.parametrize(
    ("titles", "words", "found"),
    [
        (["Kettle", "Copper Kettles", "Pot"], "a kettle", "01"),  # by stems; the shorter text first
        (["Pot", "Pot", "Kettle"], "pots", "01"),  # equals in the order of the list
        (["Kettle"], "the of and", ""),
        (["", "Kettle"], "kettle's", "1"),
        (["", "the"], "kettle", ""),
    ],
)
def test_a_search_finds_products_that_hold_a_word_the_best_first(titles, words, found):
    index = Index(Product(str(n), title) for n, title in enumerate(titles))
    assert "".join(index.find(words)) == found


def test_a_search_finds_fifty_at_most_on_pages_of_ten():
    index = Index(Product(str(n), "pot") for n in range(60))
    assert index.find("pot") == tuple(map(str, range(50)))
    products = {str(n): Product(str(n), "pot") for n in range(60)}
    shown = [
        sum(piece.kind is pages.Kind.PRODUCT for piece in pages.pieces(place, "", products))
        for place in (pages.Place("results", index.find("pot"), number) for number in (1, 5, 6))
    ]
    assert shown == [10, 10, 0]


# --- rewards


@pytest.mark.parametrize(
    ("actions", "worth"),
    [
        ([*TO_ITEM, "click[red]", "click[small]"], 1.0),
        ([*TO_ITEM, "click[small]"], 3 / 4),
        ([*TO_ITEM, "click[blue | green]", "click[small]"], 3 / 4),
        (TO_ITEM, 2 / 4),
        (["search[pot]", f"click[{POT}]"], 0.0),  # one of two nouns, so of the kind, but nothing that was asked for
        (["search[lamp]", f"click[{LAMP}]", "click[small]"], 0.0),  # no noun in common
    ],
)
def test_a_purchase_is_worth_the_share_of_what_was_asked_for(task, actions, worth):
    environment, _ = begin(task)
    *_, last = play(environment, [*actions, "click[Buy Now]"])
    assert last[1:] == (worth, True, False, {"success": worth == 1, "answer": "click[buy now]", "refused": False})


def product(title: str, **more) -> Product:
    return Product("B0", title, **more)


def worth(bought: Product, chosen=(), attributes=(), options=(), limit=1000.0, wanted: Product | None = None) -> float:
    goal = {"attributes": list(attributes), "options": [list(option) for option in options], "limit": limit}
    return reward.reward(goal, wanted or bought, bought, chosen)


@pytest.mark.parametrize(
    ("asked", "chosen", "hit"),
    [
        (("size", "large"), "large", True),
        (("size", "x-large"), "large", True),  # each word of the one is in the other
        (("size", "large"), "x-large", False),
        (("x-large",), "large", True),
        (("men's 9",), "men's 10", False),
        (("color", "red"), "dark red", True),
        (("color", "dark red"), "red", True),
        (("dark red",), "light red", True),  # both are just red, where people name a value
        (("color", "dark red"), "light blue", False),
        (("size", "standard"), "standard", False),  # what was chosen becomes tan, the pair does not
        (("standard",), "standard", True),
    ],
)
def test_an_option_counts_by_its_colour_or_by_its_words(asked, chosen, hit):
    assert worth(product("kettle"), [chosen], options=[asked]) == (2 if hit else 1) / 2


@pytest.mark.parametrize(
    ("attribute", "hit"),
    [("easy clean", True), ("easy to clean", True), ("made of steel", False), ("whistle", True), ("big pot", True)],
)
def test_an_attribute_counts_if_it_is_one_or_stands_in_the_texts(attribute, hit):
    bought = product(
        "Big Pot", description="It can whistle.", features=("of steel",), attributes=("easy clean", "heavy duty")
    )
    assert worth(bought, attributes=[attribute]) == (2 if hit else 1) / 2


def test_a_price_counts_up_to_its_limit():
    assert [worth(product("pot", prices=(10.0,)), limit=limit) for limit in (9.99, 10.0)] == [0.0, 1.0]
    ranged = Product("B1", "pot", prices=(10.0, 20.0))
    assert 10 < ranged.price < 20 and ranged.price == Product("B1", "pan", prices=(10.0, 20.0)).price


@pytest.mark.parametrize(
    ("wanted", "bought", "kind"),
    [
        (product("iron kettle"), product("copper kettle"), 1.0),  # more than .2 of the nouns
        (product("pot of iron steel oak pine"), product("pot"), 0.5),  # just .2
        (product("pot of iron steel oak pine", query="pots"), product("pot", query="pots"), 1.0),
        (
            product("pot of iron steel oak pine elm", query="p", parts=frozenset("abc")),
            product("pot", query="q", parts=frozenset("bcd")),
            1.0,
        ),
        (
            product("pot iron steel oak pine elm", query="p", parts=frozenset("abc")),
            product("pot", query="q", parts=frozenset("cde")),
            0.5,
        ),
        (product(" ".join(f"noun{'abcdefghijk'[n]}" for n in range(11)), query="x"), product("nouna", query="x"), 0.1),
        (product("kettle", query="x"), product("lamp", query="x"), 0.0),
        (product("red", query="x"), product("lamp", query="y"), 0.5),  # no noun to compare: counts as .2
        (product("red", query="x"), product("lamp", query="x"), 1.0),
    ],
)
def test_kinship_is_told_by_nouns_first_then_by_query_and_category(wanted, bought, kind):
    if not (wanted.query or wanted.parts):  # queries that differ
        wanted, bought = (product(p.title, query=p.title, parts=p.parts) for p in (wanted, bought))
    assert reward.kinship(wanted, bought) == kind


def test_colours_are_in_the_order_of_letters_since_the_first_one_counts():
    assert reward.COLOURS == sorted(set(reward.COLOURS))


# --- the made shop


def test_made_tasks_can_be_sent_and_ask_for_other_products_in_train_and_test():
    train, test = (environments.tasks(SETTINGS, DataSettings(), split) for split in ("train", "test"))
    assert len(train) > 1000 and len(test) > 250
    assert not {task["asin"] for task in train} & {task["asin"] for task in test}
    assert msgpack.unpackb(msgpack.packb(train)) == train


def test_made_tasks_are_the_same_in_every_process():
    code = "import hashlib, json, test_webshop as t; print(hashlib.sha256(json.dumps(t.made()).encode()).hexdigest())"
    paths = os.pathsep.join((PYTHONPATH, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == hashlib.sha256(json.dumps(made()).encode()).hexdigest()


def test_who_knows_the_product_gets_all_of_every_task_and_who_clicks_at_random_next_to_nothing():
    environment, draw, rewards = Webshop(), Random(0), []
    for task in made():
        environment.reset(seed=0, options={"task": task})
        observation = environment.step(f"search[{catalogue(None).products[task['asin']].title}]")[0]
        while task["asin"] not in observation:
            observation = environment.step("click[next >]")[0]
        environment.step(f"click[{task['asin']}]")
        play(environment, [f"click[{value}]" for _, value in task["options"]])
        assert environment.step("click[buy now]")[1] == 1.0, task
    for task in made()[::4]:
        environment.reset(seed=0, options={"task": task})
        ended, worth = False, 0.0
        while not ended:
            _, worth, ended, _, _ = environment.step(at_random(environment, task, draw))
        rewards.append(worth)
    print(f"at random: {np.mean(rewards):.3f} over {len(rewards)} tasks, {np.mean(np.equal(rewards, 1)):.4f} right")
    assert np.mean(rewards) < 0.25 and np.mean(np.equal(rewards, 1)) < 0.02


def at_random(environment: Webshop, task: dict, draw: Random) -> str:
    """Any click of the page, or a search of three words of the instruction."""
    choices = [f"click[{one}]" for one in pages.clickable(environment._page())]
    return draw.choice([*choices, f"search[{' '.join(draw.sample(task['instruction'].split(), 3))}]"])


# --- any text, and searches


NOISE = [
    "",
    "[",
    "]",
    "[]",
    "click[",
    "search[]",
    "Action:",
    "\n",
    "wait",
    "<r>",
    "\u2028",
    "é",
    "\ud83d",
    "\0",
    "x" * 5000,
]


@pytest.mark.parametrize("where", ["made", "files"])
def test_ten_thousand_actions_of_any_kind_break_nothing_and_can_be_gone_back_on(where, folder):
    draw, data = Random(0), DataSettings(path=folder if where == "files" else None)
    tasks = [task for split in ("train", "test") for task in environments.tasks(SETTINGS, data, split)]
    environment, other = (Webshop(mode=mode, list_actions=True) for mode in ("text", "text"))
    pages_seen, over = set(), True
    for _ in range(5000):
        if over:
            task = draw.choice(tasks)
            environment.reset(seed=0, options={"task": task})
        parts = [draw.choice(NOISE) for _ in range(draw.randint(1, 4))]
        action = draw.choice([at_random(environment, task, draw)] * 3 + ["".join(parts), f"search[{''.join(parts)}]"])
        before = environment.snapshot()
        observation, worth, over, truncated, info = step = environment.step(action)
        assert observation and 0 <= worth <= 1 and (over or not worth) and not truncated
        assert set(info) == {"success", "answer", "refused"}
        other.restore(before)
        assert other.step(action) == step
        pages_seen.add(environment.snapshot()["place"].page)
    assert pages_seen == {"search", "results", "item", "description", "features", "reviews", "done"}


class Buyer:
    """Searches what is wanted, then at each page does the right thing or, as often, something else."""

    def __init__(self, task: dict):
        self.task, self.draw = task, Random(1)

    def __call__(self, prompt: str) -> str:
        return f"Thought: go on\nAction: {self.draw.choice(self.choices(prompt.rpartition('Instruction:')[2]))}"

    def choices(self, page: str) -> list[str]:
        if page.endswith("Search"):
            return ["search[kettle]", "buy it"]
        if "(Total results:" in page:
            return [f"click[{KETTLE}]", f"click[{POT}]", "click[zeppelin]"]
        return ["click[buy now]", "click[red]", "click[small]"] if "[SEP] red" in page else ["click[buy now]"]


@pytest.mark.parametrize("splice", ["replayed", "verbatim"])
def test_a_search_revises_what_was_refused_and_goes_on_to_what_is_worth_more(task, splice):
    settings = SearchSettings(turns=8, simulations=16, expansions=3, alpha=0.5, pairs=2, splice=splice)
    house = House(settings, Buyer(task), "webshop", task, tokenizer=build_tokenizer("bytes", 65536), max_tokens=100)
    revisions = [turn for turn in house.turns if turn.role is Role.REVISION]
    assert revisions and not house.failures
    for revision in revisions:
        before = house.context(revision)
        assert "zeppelin" in before.rpartition("Thought:")[2] or "buy it" in before.rpartition("Thought:")[2]
        follower = next(turn for turn in house.turns if turn.parent == revision.turn)
        assert "ok." in house.context(follower).rpartition("Action: wait")[2]
        ends = [turn for turn in house.turns if turn.episode == revision.episode and turn.terminated]
        assert len(ends) == 1 and ends[0].reward > 0.5
    assert max(turn.reward for turn in house.turns) == 1.0


def test_what_a_model_thought_before_its_action_does_not_count():
    from actors.environments.webshop.actions import parse

    said = f"{'so ' * 2000}</think>\nAction: search[red shoes]"
    assert str(parse(said)) == str(parse("Action: search[red shoes]")) == "search[red shoes]"
