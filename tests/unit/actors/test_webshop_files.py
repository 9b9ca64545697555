"""What webshop reads of the files that people bring, and the goals that it makes of them."""

from __future__ import annotations

import pytest
from support import little_shop
from support.little_shop import KETTLE

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.webshop import files, goals
from protocols.errors import SettingError

SETTINGS = EnvironmentSettings(name="webshop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(little_shop.write(tmp_path_factory.mktemp("shop")))


def test_files_are_read_as_they_are_fetched(folder):
    found = files.read(folder)
    kettle, pot, lamp = found.products.values()
    assert kettle.options == {"color": ("red", "blue | green"), "size": ("small",)}
    assert (kettle.query, kettle.parts) == ("kettles", {"Home & Kitchen", "Kettles"})
    assert (pot.prices, pot.features, pot.attributes) == ((12.5, 1020.0), ("brews tea",), ("DUMMY_ATTR",))
    assert (lamp.tag, lamp.description, lamp.options) == ("$100.0", "", {"size": ("small", "large")})


def test_products_without_a_proper_name_and_second_ones_are_left_out(tmp_path):
    rows = [{"asin": asin, "name": name} for asin, name in (("nan", ""), ("B" * 11, ""), ("A", "first"), ("A", "2nd"))]
    little_shop.write(tmp_path, rows, {})
    assert [product.title for product in files.read(str(tmp_path)).products.values()] == ["first"]


@pytest.mark.parametrize(
    ("products", "facts", "people", "words"),
    [
        ({}, {}, None, "items_shuffle_1000.json is no list"),
        ([{"asin": "A"}, []], {}, None, "product 1 of items_shuffle_1000.json is not as it must be"),
        ([{"asin": "A", "customization_options": {"size": [3]}}], {}, None, "product 0 of"),
        ([{"name": "A"}], {}, None, "KeyError: 'asin'"),
        ([], {"A": 3}, None, "'A' of items_ins_v2_1000.json is no map"),
        ([], [], None, "items_ins_v2_1000.json is no dict"),
        ([{"asin": "A"}], {}, {"A": [{}]}, "'A' of items_human_ins.json has no instruction"),
        ([{"asin": "A"}], {}, {"A": []}, "people wrote 0 goals"),
        (
            [{"asin": "A", "customization_options": {str(n): [{"value": str(v)} for v in range(9)] for n in range(7)}}],
            {"A": {"instruction": "x"}},
            None,
            "make 4,782,969 goals",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_its_name(tmp_path, products, facts, people, words):
    little_shop.write(tmp_path, products, facts, people)
    with pytest.raises(SettingError, match=words) as refused:
        environments.tasks(SETTINGS, DataSettings(path=str(tmp_path)), "train")
    assert refused.value.setting == "data.path"


def test_a_folder_without_products_or_with_two_lists_is_refused(tmp_path):
    for names in ("none", "items_shuffle.json, items_shuffle_1000.json"):
        with pytest.raises(SettingError, match=f"holds {names}"):
            files.read(str(tmp_path))
        little_shop.write(tmp_path)
        (tmp_path / "items_shuffle.json").write_text("[]")


# --- goals


def test_each_combination_of_options_is_a_goal_with_a_limit_above_the_price(folder):
    found = {
        goal["instruction"]: goal for split in ("train", "test") for goal in goals.goals(files.read(folder), split)
    }
    kettles = [goal for goal in found.values() if goal["asin"] == KETTLE]
    assert [goal["options"] for goal in sorted(kettles, key=lambda goal: goal["options"])] == [
        [["color", value], ["size", "small"]] for value in ("blue | green", "red")
    ]
    for told, goal in found.items():
        price, limit = files.read(folder).products[goal["asin"]].price, goal["limit"]
        assert told.endswith(f", and price lower than {limit:.2f} dollars") and price < limit <= price + 50
        assert ("with color: red, and size: small, and" in told) == (["color", "red"] in goal["options"])
    assert len(found) == 4 and sorted(goal["id"] for goal in found.values()) == [f"webshop/{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("price", "limited"), [(960.0, True), (969.99, True), (970.0, True), (980.0, False), (2e3, False)]
)
def test_only_prices_with_two_limits_above_them_have_one(tmp_path, price, limited):
    row = {"asin": "A", "pricing": f"${price}"}
    little_shop.write(tmp_path, [row], {"A": {"instruction": "buy it"}})
    (goal,) = [goal for split in ("train", "test") for goal in goals.goals(files.read(str(tmp_path)), split)]
    assert (goal["instruction"] != "buy it") == limited and (goal["limit"] < 1000) == limited


def test_goals_that_people_wrote_are_split_as_in_the_paper(tmp_path):
    said = {"instruction": ".a kettle.", "instruction_attributes": ["steel"], "instruction_options": ["red"]}
    skipped = said | {"instruction_attributes": []}
    little_shop.write(tmp_path, people={KETTLE: [said] * 1600 + [skipped] * 50, "unknown": [said]})
    data = DataSettings(path=str(tmp_path))
    train, test = (environments.tasks(SETTINGS, data, split) for split in ("train", "test"))
    assert [task["id"] for task in test] == [f"webshop/{n}" for n in range(500)]
    assert [task["id"] for task in train] == [f"webshop/{n}" for n in range(1500, 1600)]
    assert test[0]["options"] == [["red"]] and test[0]["instruction"].startswith("a kettle, and price lower than")
