"""The corpus generator of the demo model: turns the grammar in stories.py, facts.py and words.py into documents.

A document is a list of (role, text) pairs; a plain story has the role None. `render` gives the exact training text,
which the chat template of the tokenizer reproduces. Standard library only; the same seed gives the same corpus.

    python generate.py --seed 1 --count 5
"""

import argparse
import random
import re
from functools import lru_cache

import facts
import stories
import words

SPECIALS = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
DEFAULT_PROMPT = "In the beginning the Universe was created."


def render(doc):
    """The training text of a document; every message and every plain document ends with <|end|>."""
    return "".join((f"<|{role}|>" if role else "") + text + "<|end|>" for role, text in doc)


# --- Templates ------------------------------------------------------------------------------------------------------

@lru_cache(maxsize=None)
def parse(template):
    """A template as a tuple of strings, ("alt", choices) and ("var", name, pool, attribute, capitalise)."""
    def sequence(pos, stop):
        parts, text = [], ""
        while pos < len(template) and template[pos] not in stop:
            char = template[pos]
            if char == "[":
                choices = []
                while template[pos] != "]":
                    choice, pos = sequence(pos + 1, "|]")
                    choices.append(choice)
                parts += [text, ("alt", choices)]
                text = ""
            elif char == "{":
                end = template.index("}", pos)
                name, _, attribute = template[pos + 1:end].partition(".")
                name, _, pool = name.partition(":")
                if "." in pool:
                    pool, _, attribute = pool.partition(".")
                parts += [text, ("var", name[0].lower() + name[1:], pool, attribute, name[0].isupper())]
                text, pos = "", end
            else:
                text += char
            pos += 1
        return tuple(p for p in parts + [text] if p), pos
    return sequence(0, "")[0]


def lines_of(block):
    return [line for line in block.strip().split("\n") if line]


ONES = {"adj": words.ADJ, "animal": words.ANIMALS, "stranger": words.STRANGERS, "elder": words.ELDERS,
        "look": words.LOOKS, "colour": words.COLOURS, "time": words.TIMES, "weather": words.WEATHER,
        "place": words.PLACES, "home": words.HOMES, "food": words.FOODS, "skill": words.SKILLS, "fear": words.FEARS,
        "build": words.BUILDS, "plant": words.PLANTS, "feast": words.FEASTS, "planet": words.PLANETS,
        "outside": words.OUTSIDE, "scene": words.SCENES, "years": ["ten", "twenty", "fifty", "a hundred", "many", "seven"],
        "days": ["three", "four", "five", "six", "seven", "nine", "twelve"],
        "snowname": ["Frosty", "Flake", "Button", "Carrot", "Mister White", "Snowy", "Pebble", "Icicle", "Winter"],
        "bad": words.FEEL_BAD, "good": words.FEEL_GOOD, "person": words.PEOPLE,
        "maker": ["weaver", "potter", "gardener", "grandmother", "wanderer", "shepherdess", "old woman", "baker"],
        "topic": ["the weather", "old times", "the stars", "the sea", "what they would do tomorrow", "far-away places"]}


class State:
    """What one story or answer has settled so far: its characters, things and places."""

    def __init__(self, rng, **known):
        self.rng, self.known, self.queue = rng, dict(known), {}
        self.used = {v for v in known.values() if isinstance(v, str)}

    def draw(self, pool):
        """A word of the pool that this story has not used yet; words asked for by the prompt come first."""
        if self.queue.get(pool):
            word = self.queue[pool].pop(0)
        elif pool == "thing":
            word = a_thing(self.rng)
        else:
            for _ in range(8):
                word = self.rng.choice(ONES[pool])
                if word not in self.used:
                    break
        self.used.add(word)
        return word

    def value(self, name, pool, attribute):
        known = self.known
        if name not in known:
            drawn = self.draw(pool or name)
            if "|" in drawn:
                where, _, drawn = drawn.partition("|")
                known[name + ".at"] = f"{where} {drawn}"
            known[name] = drawn
        found = known[name + ".at" if attribute else name]
        return self.rng.choice(found) if isinstance(found, tuple) else found

    def fill(self, parts):
        out = []
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            elif part[0] == "alt":
                out.append(self.fill(self.rng.choice(part[1])))
            else:
                word = self.value(*part[1:4])
                out.append(word[0].upper() + word[1:] if part[4] else word)
        return "".join(out)

    def say(self, template):
        return tidy(self.fill(parse(template)))


_AN = re.compile(r"\b([Aa]) (?=(?!uni|use|one\b|eu)[aeiou]|hour|honest|X-)", re.I)
_START = re.compile(r'(^"?|\n"?|[.!?:] "|[.!?] |[.]" "?)([a-z])')
_SPACE = re.compile(r" {2,}| (?=[.,!?])")


def tidy(text):
    """Articles, sentence capitals and spaces put right."""
    text = _SPACE.sub(lambda m: " " if len(m[0]) > 1 else "", text.strip())
    text = _AN.sub(lambda m: m[1] + "n ", text)
    return _START.sub(lambda m: m[1] + m[2].upper(), text)


# --- Characters -----------------------------------------------------------------------------------------------------

SYLLABLES = "ba be bo da do fa fi ga go ka ki la lo lu ma mi mo na ne no pa po ra ri ro sa si ta ti to va ve vo za zu".split()
TAILS = ["", "n", "r", "l", "s", "x", "k", "m", "t", "mp", "rk", "ff"]


REAL = [w for w in words.THINGS + words.MORE + words.ANIMALS + words.PEOPLE + words.SCENES + [n.lower() for n in words.GIRLS + words.BOYS]
        if w.isalpha() and len(w) > 3]


def invented(rng):
    """A made-up word, so that the model learns to copy words that it has never seen."""
    if rng.random() < 0.4:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3)))) + rng.choice(TAILS[1:])
    head, tail = rng.choice(REAL), rng.choice(REAL)
    return head[:rng.randint(2, min(5, len(head) - 1))] + tail[-rng.randint(2, min(5, len(tail) - 1)):]


def a_thing(rng, asked=False):
    """Something that one could carry; what a prompt asks for may be anything."""
    if asked and rng.random() < 0.5:
        return invented(rng) if rng.random() < 0.4 else rng.choice(words.MORE)
    return invented(rng) if rng.random() < 0.05 else rng.choice(words.THINGS)


def a_name(rng, she):
    if rng.random() < 0.12:
        return invented(rng).capitalize()
    return rng.choice(words.GIRLS if she else words.BOYS)


def a_kind(rng, she):
    pick = rng.random()
    if pick < 0.30:
        return "girl" if she else "boy"
    if pick < 0.75:
        return rng.choice(words.ANIMALS)
    if pick < 0.80:
        return rng.choice(words.CREATURES)
    if pick < 0.85:
        return invented(rng)
    if pick < 0.87:
        return a_thing(rng)
    kind = rng.choice(words.PEOPLE)
    return a_kind(rng, she) if kind in ({"prince", "king"} if she else {"princess", "queen"}) else kind


HER = {"king": False, "prince": False, "wizard": False, "queen": True, "princess": True, "witch": True,
       "mermaid": True, "girl": True, "boy": False, "hen": True, "cow": True, "rooster": False}


def pronouns(she):
    return dict(he="she", his="her", him="her", himself="herself") if she else dict(
        he="he", his="his", him="him", himself="himself")


def cast(rng, plot, ask):
    """The state of a new story: its hero, the hero's friend and whatever the prompt asks for."""
    she = plot in CREATION or ask.get("she", HER.get(ask.get("kind"), rng.random() < 0.5))
    if ask.get("palkind") in HER:
        she = not HER[ask["palkind"]] if "she" not in ask and ask.get("kind") not in HER else she
    kind = ask.get("kind") or a_kind(rng, she)
    palkind = ask.get("palkind") or a_kind(rng, not she)
    while palkind == kind:
        palkind = a_kind(rng, not she)
    name, pal = ask.get("name") or a_name(rng, she), ask.get("pal") or a_name(rng, not she)
    known = dict(hero=name, kind=kind, h=(name, name, "the " + kind), **pronouns(she))
    if ask.get("scene"):
        known["s0"] = ask["scene"]
    if "robot" in plot.needs:
        kind = ask.get("kind") or rng.choice(words.ROBOTS)
        known.update(kind=kind, robot=kind, h=(name, name, "the " + ("AI" if plot.name == "assistant" else kind)),
                     he="it", his="its", him="it", himself="itself")
        palkind = ask.get("palkind") or ("boy" if she else "girl")
    friend = pronouns(not she)
    adj, adj2, adj3 = rng.sample(words.ADJ, 3)
    known.update(pal=pal, palkind=palkind, p=(pal, pal, "the " + palkind), phe=friend["he"], phis=friend["his"],
                 phim=friend["him"], adj=adj, adj2=adj2, adj3=adj3, tlook=rng.choice(words.LOOKS),
                 ehis=rng.choice(["his", "her"]))
    known.update(ask.get("known", {}))
    state = State(rng, **known)
    state.used |= {kind, palkind}
    state.queue = {pool: list(asked) for pool, asked in ask.get("queue", {}).items()}
    return state


# --- Stories --------------------------------------------------------------------------------------------------------

class Plot:
    """A parsed plot: its beats, summaries and questions."""

    def __init__(self, header, body):
        name, _, rest = header.partition("|")
        needs, _, themes = rest.partition("|")
        self.name, self.needs = name.strip(), needs.split()
        self.themes = [t.strip() for t in themes.split(",") if t.strip()]
        self.beats, self.summaries, self.questions = [], [], []
        for block in re.split(r"\n\s*\n", body.strip()):
            lines = lines_of(block)
            if lines[0][:2] in ("S:", "Q:"):
                self.summaries += [line[3:] for line in lines if line.startswith("S:")]
                self.questions += [line[3:].split(" | ") for line in lines if line.startswith("Q:")]
                continue
            optional = lines[0].startswith(("?", "~?"))
            lines[0] = lines[0].replace("~?", "~").removeprefix("? ")
            self.beats.append((optional, lines))


def plots_of(text):
    return [Plot(*part.split("\n", 1)) for part in re.split(r"(?:^|\n)# ", text)[1:]]


SHARED = {plot.name: plot.beats[0][1] for plot in plots_of(stories.SHARED)}
PLOTS = plots_of(stories.PLOTS)
CREATION = plots_of(stories.CREATION)
ROBOTS = [p for p in PLOTS if "robot" in p.needs]
TALES = [p for p in PLOTS if "robot" not in p.needs and not p.name.startswith("mini")]
MINIS = [p for p in PLOTS if p.name.startswith("mini")]
THEMES = sorted({t for p in PLOTS for t in p.themes} - {"short", "AI", "machines", "robots", "computers"})


class Story:
    """One told story: its text, its opening sentence, and what can be asked about it."""

    def __init__(self, rng, plot, ask=None, length=None):
        self.rng, self.plot, self.state = rng, plot, cast(rng, plot, ask or {})
        keep = {"short": 0.1, "medium": 0.5, "long": 0.95}[length or rng.choice(["short", "medium", "medium", "long"])]
        paragraphs = [[]]
        for optional, lines in plot.beats:
            if optional and rng.random() > keep:
                continue
            if lines[0] == "--":
                paragraphs.append([])
                continue
            line = self.opening(lines, ask) if not paragraphs[0] else rng.choice(lines)
            if line.startswith("~"):
                line = rng.choice(SHARED[line[1:]])
            paragraphs[-1].append(self.state.say(line))
        self.paragraphs = [" ".join(p) for p in paragraphs if p]
        self.text = "\n\n".join(self.paragraphs)
        found = re.match(r'.*?[.!?]"?(?= [A-Z"]|\n|$)', self.text, re.S)
        self.first = found[0]
        self.rest = self.text[len(self.first):].strip()

    def opening(self, lines, ask):
        return (ask or {}).get("opening") or self.rng.choice(lines)

    def summary(self):
        return self.state.say(self.rng.choice(self.plot.summaries))

    def question(self):
        """A question about the story and its one right answer."""
        state, known = self.state, self.state.known
        pairs = list(self.plot.questions)
        if self.plot in PLOTS and "robot" not in self.plot.needs:
            pairs += [("What was the name of the {kind}?", "The {kind} was named {hero}."),
                      ("Who was {hero}?", "{hero} was a {kind}.")]
            if "pal" in self.plot.needs:
                pairs += [("Who was {pal}?", "{pal} was a {palkind}.")]
        question, answer = self.rng.choice(pairs)
        if "{food}" in question + answer and "food" not in known:
            return self.question()
        return state.say(question), state.say(answer)


def any_story(rng, length=None):
    pick = rng.random()
    if pick < 0.18:
        return Story(rng, rng.choice(CREATION), length=length)
    if pick < 0.26:
        return Story(rng, rng.choice(ROBOTS), length=length)
    if pick < 0.36:
        return Story(rng, rng.choice(MINIS), length=length)
    return Story(rng, rng.choice(TALES), length=length)


STORY_ASKS = """
[Write|Tell me|Write me|Please write|Please tell me|Can you tell me|Can you write|I would like to hear|Tell] [a|one|a nice|a little] story[ about *|].
[Write|Tell me|Please write|Can you write] a {size} story[ about *|].
[Write|Tell me] a [bedtime|children's] story[ about *|].
[I want|I would like|Give me] a story[ about *|].
[Do you know|Can you tell] a story[ about *|]?
"""
SIZES = {"short": ["short", "very short", "little", "brief"], "medium": ["good", "nice", "funny", "gentle", "new"],
         "long": ["long", "longer", "very long"]}


def asked_story(rng):
    """A prompt that asks for a story, and the story: what it names appears in the story."""
    length = rng.choice(["short", "medium", "medium", "long"])
    ask, plots, about = {}, TALES, None
    pick = rng.random()
    if pick < 0.14:
        plots = TALES + MINIS if length == "short" else TALES + ROBOTS
    elif pick < 0.20:
        theme = rng.choice(THEMES)
        plots, about = [p for p in PLOTS if theme in p.themes], rng.choice([theme, "the subject of " + theme, theme])
    elif pick < 0.27:
        kind = rng.choice(words.ROBOTS)
        plots, about = ROBOTS, rng.choice(["AI", "a robot", "robots", "artificial intelligence", "an AI", "a " + kind])
        ask = {"kind": kind} if about == "a " + kind and kind != "computer" else {}
        if rng.random() < 0.3 and about.startswith(("a ", "an ")):
            ask["name"] = a_name(rng, rng.random() < 0.5)
            about += " named " + ask["name"]
    elif pick < 0.33:
        story = Story(rng, rng.choice(CREATION), length=length)
        return creation_ask(rng, story), story
    elif pick < 0.41:
        plot, pool, wording = rng.choice([("learn", "skill", "who wants {}"), ("fear", "fear", "who is afraid of {}"),
                                          ("build", "build", "who builds a {}"), ("garden", "plant", "who grows a {}"),
                                          ("feast", "feast", "on the way to {}"), ("lost", "thing", "who lost {his} {}"),
                                          ("lost", "thing", "who loses {his} {}"), ("gift", "thing", "who makes a {} for a friend"),
                                          ("stuck", "stranger", "who helps a {}"), ("dragon", "thing", "and a dragon"),
                                          ("map", "thing", "who finds a treasure map"), ("snow", "plant", "and a snowman"),
                                          ("night train", "plant", "who travels to the moon"), ("stars", "plant", "and the stars"),
                                          ("cake", "food", "who solves a mystery"), ("race", "plant", "who runs a race"),
                                          ("quarrel", "thing", "and a friend who quarrel about a {}"),
                                          ("wishes", "thing", "who has three wishes"), ("painter", "thing", "who paints"),
                                          ("bottle", "thing", "who finds a letter in a bottle"), ("clock", "plant", "and a clock")])
        she = rng.random() < 0.5
        word = a_thing(rng, True) if pool == "thing" else rng.choice(ONES[pool])
        ask = {"she": she, "kind": a_kind(rng, she), "known": {pool: word}}
        she = ask["she"] = HER.get(ask["kind"], she)
        plots = [p for p in PLOTS if p.name == plot]
        about = f"a {ask['kind']} " + wording.format(word, his="her" if she else "his")
    else:
        she = rng.random() < 0.5
        kind = rng.choice(words.SEA) if rng.random() < 0.03 else a_kind(rng, she)
        she = HER.get(kind, she)
        ask = {"she": she, "kind": kind}
        about = "a " + kind
        if rng.random() < 0.25:
            ask["name"] = a_name(rng, she)
            about = rng.choice([f"a {kind} named {ask['name']}", f"a {kind} called {ask['name']}", ask["name"],
                                f"{ask['name']} the {kind}"])
        pick = rng.random()
        if pick < 0.20:
            plots = [p for p in TALES if "thing" in p.needs]
            thing = a_thing(rng, True)
            ask["known"] = {"thing": thing}
            about += rng.choice([" and a ", " who finds a ", " with a ", " and a "]) + thing
            if " finds " in about:
                plots = [p for p in plots if p.name in ("quarrel", "wishes", "shop", "map")]
        elif pick < 0.40:
            plots = [p for p in TALES if "thing" in p.needs]
            thing = a_thing(rng, True)
            ask, about = {"known": {"thing": thing}}, "a " + thing
            if rng.random() < 0.3:
                look = rng.choice(words.LOOKS)
                ask["known"]["tlook"] = look
                about = f"a {look} {thing}"
        elif pick < 0.60:
            plots = [p for p in TALES if "pal" in p.needs]
            ask["palkind"] = a_kind(rng, not she)
            if ask["palkind"] != kind:
                if "name" in ask and rng.random() < 0.5:
                    ask["pal"] = a_name(rng, not she)
                    about = f"{ask['name']} and {ask['pal']}"
                else:
                    about += " and a " + ask["palkind"]
            else:
                del ask["palkind"]
        elif pick < 0.68:
            place = rng.choice(words.PLACES)
            where, _, noun = place.partition("|")
            plots = [p for p in TALES if any(":place" in line for opt, lines in p.beats if not opt for line in lines)]
            ask["queue"] = {"place": [place]}
            about = rng.choice([noun, f"{about} {where} {noun}"])
            if about == noun:
                ask = {"queue": ask["queue"]}
        elif rng.random() < 0.1:
            plots = MINIS
    story = Story(rng, rng.choice(plots), ask, length)
    asks = [line for line in lines_of(STORY_ASKS) if ("{size}" in line) or rng.random() < 0.6]
    template = rng.choice(asks)
    state = State(rng, size=tuple(SIZES[length]))
    text = state.fill(parse(template))
    if about and "*" not in text:
        text = text[:-1] + " about *" + text[-1]
    text = text.replace(" about *", "") if not about else text.replace("*", about)
    return tidy(text), story


def creation_ask(rng, story):
    special = {"colours": ["how the world got its colours", "the first rainbow"],
               "siblings": ["the Sun and the Moon", "how night came into the world", "day and night"],
               "names": ["how everything got its name", "the first words"],
               "maker": ["how the world was made", "the making of the world"],
               "universe": ["the beginning of the universe", "the universe", "the stars", "how the stars were born"]}
    about = rng.choice(special[story.plot.name] + ["the beginning of the world", "how the world began"])
    return tidy(rng.choice([f"Tell me a story about {about}.", f"Write a story about {about}.",
                            f"Write a short story about {about}.", f"Tell me about {about}, as a story."]))


def continued_story(rng):
    """A prompt that opens a story, and its continuation."""
    pick = rng.random()
    if pick < 0.30:
        story = Story(rng, CREATION[0], {"opening": DEFAULT_PROMPT} if rng.random() < 0.5 else None,
                      length=rng.choice(["medium", "long", "long"]))
    elif pick < 0.5:
        story = Story(rng, rng.choice(CREATION), length=rng.choice(["medium", "long"]))
    else:
        story = Story(rng, rng.choice(ROBOTS if rng.random() < 0.15 else TALES + MINIS[:1]))
    first, rest = story.first, story.rest
    pick = rng.random()
    if first != DEFAULT_PROMPT and pick < 0.22:     # the opening broken off in mid-sentence
        cut = first.split(" ")
        if len(cut) > 5:
            at = rng.randint(3, len(cut) - 2)
            if first.startswith("Once upon a time") and rng.random() < 0.7:
                at = 4
            first, rest = " ".join(cut[:at]).rstrip(","), " ".join(cut[at:]) + story.text[len(story.first):]
            if rng.random() < 0.3:
                first += " ..."
    elif pick < 0.30:
        first = rng.choice(["Continue this story: ", "Go on with this story: ", "Finish this story: "]) + first
    elif pick < 0.33 and first != DEFAULT_PROMPT:
        first = first.rstrip(".")
    return first, rest, story


# --- Questions and answers ------------------------------------------------------------------------------------------

def pick_line(rng, block):
    return State(rng).say(rng.choice(lines_of(block)))


def title(text):
    return text[0].upper() + text[1:]


def q_sum(rng):
    kind = rng.choice("+++--x/w")
    if kind == "+":
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        c, sign, word = a + b, "+", "plus"
    elif kind == "-":
        b, c = rng.randint(0, 15), rng.randint(0, 15)
        a, sign, word = b + c, "-", "minus"
    elif kind == "x":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        c, sign, word = a * b, "x", "times"
        sign = rng.choice("xx*")
    elif kind == "/":
        b, c = rng.randint(1, 10), rng.randint(0, 10)
        a, sign, word = b * c, "/", "divided by"
    else:
        she = rng.random() < 0.5
        name, pro = a_name(rng, she), "She" if she else "He"
        things = rng.choice("apples pears marbles books coins eggs shells balls stones cakes".split())
        a, b = rng.randint(2, 12), rng.randint(1, 8)
        if rng.random() < 0.5 or b >= a:
            ask = f"{name} has {a} {things}. {pro} [gets|finds|buys] {b} more. How many {things} does {name} have now?"
            return State(rng).say(ask), f"{name} has {a} + {b} = {a + b} {things}."
        ask = f"{name} has {a} {things}. {pro} [loses|gives away] {b}. How many {things} does {name} have left?"
        left = f"{a - b} {things}" if a - b != 1 else f"1 {things[:-1]}"
        return State(rng).say(ask), f"{name} has {a} - {b} = {left} left."
    if max(a, b, c) <= 20 and rng.random() < 0.3 and sign != "*":
        n = words.NUMBERS
        return f"What is {n[a]} {word} {n[b]}?", f"{title(n[a])} {word} {n[b]} is {n[c]}."
    space = rng.choice([" ", " ", ""])
    return (rng.choice(["What is {}?", "How much is {}?", "{}", "{} = ?", "Calculate {}.", "Can you tell me what {} is?"])
            .format(f"{a}{space}{sign}{space}{b}"), f"{a} {sign} {b} = {c}.")


def q_compare(rng):
    if rng.random() < 0.4:
        a, b = rng.sample(range(0, 100), 2)
        return f"Which is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}."
    order, more, less = rng.choice([(words.BIGGER, "bigger", "smaller"), (words.FASTER, "faster", "slower")])
    i, j = rng.sample(range(len(order)), 2)
    word, best = (more, max(i, j)) if rng.random() < 0.5 else (less, min(i, j))
    other = i + j - best
    return tidy(f"Which is {word}, a {order[i]} or a {order[j]}?"), tidy(f"A {order[best]} is {word} than a {order[other]}.")


def q_count(rng):
    a = rng.choice([1, 1, 1, rng.randint(1, 12)])
    b = a + rng.randint(3, 10)
    name = (lambda n: words.NUMBERS[n]) if b <= 20 and rng.random() < 0.35 else str
    run = list(range(a, b + 1))
    ask = rng.choice([f"Count from {name(a)} to {name(b)}.", f"Count to {name(b)}."])
    if "from" not in ask:
        run = list(range(1, b + 1))
    if rng.random() < 0.2:
        ask, run = f"Count backwards from {name(b)} to {name(a)}.", list(range(b, a - 1, -1))
    return ask, title(", ".join(map(name, run))) + "."


def q_next(rng):
    names, what = rng.choice([(words.DAYS, "day"), (words.MONTHS, "month")])
    i = rng.randrange(len(names))
    if rng.random() < 0.65:
        ask = rng.choice([f"What {what} comes after {names[i]}?", f"What comes after {names[i]}?",
                          f"Which {what} follows {names[i]}?"])
        return ask, f"{names[(i + 1) % len(names)]} comes after {names[i]}."
    return f"What {what} comes before {names[i]}?", f"{names[i - 1]} comes before {names[i]}."


def q_letter(rng):
    if rng.random() < 0.35:
        i = rng.randrange(25)
        a, b = chr(65 + i), chr(66 + i)
        return rng.choice([(f"What letter comes after {a}?", f"{b} comes after {a}."),
                           (f"What letter comes before {b}?", f"{a} comes before {b}.")])
    word = rng.choice(words.ANIMALS + [t for t in words.THINGS if t.isalpha()])
    if rng.random() < 0.5:
        return f"What is the first letter of {rng.choice([word, repr(word)])}?", f"The first letter of {word} is {word[0].upper()}."
    return rng.choice([f"Spell {word}.", f"Spell the word '{word}'.", f"How do you spell {word}?"]), "-".join(word.upper()) + "."


def q_opposite(rng):
    pair = rng.choice(words.OPPOSITES).split()
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    return rng.choice([f"What is the opposite of {a}?", f"What is the opposite of '{a}'?", f"Opposite of {a}?",
                       f"Tell me the opposite of {a}."]), f"The opposite of {a} is {b}."


def q_colour(rng):
    thing, _, colour = rng.choice(words.COLOUR_OF).rpartition(" ")
    spelling = rng.choice(["colour", "colour", "color"])
    return rng.choice([f"What {spelling} is {thing}?", f"Which {spelling} is {thing}?",
                       f"What is the {spelling} of {thing}?"]), f"{title(thing)} is {colour}."


def q_sound(rng):
    animal, sound = rng.choice(list(words.SOUNDS.items()))
    if sound in ("howl", "roar", "growl", "trumpet", "hiss", "buzz", "chirp", "neigh"):
        answer = {"buzz": "buzzes", "hiss": "hisses"}.get(sound, sound + "s")
        answer = f"A {animal} {answer}."
    else:
        answer = f"A {animal} says {sound}."
    return tidy(rng.choice([f"What sound does a {animal} make?", f"What does a {animal} say?",
                            f"What noise does a {animal} make?"])), tidy(answer)


def q_table(rng):
    """One of the small tables: legs, counts, capitals, young animals, homes, materials, uses."""
    table = rng.randrange(7)
    if table == 0:
        animal, legs = rng.choice(list(words.LEGS.items()))
        has = "no legs" if legs == 0 else f"{words.NUMBERS[legs]} legs"
        return tidy(f"How many legs does a {animal} have?"), tidy(f"A {animal} has {has}.")
    if table == 1:
        what, count = rng.choice(list(words.COUNTS.items()))
        if " does " in what:
            noun, _, rest = what.partition(" does ")
            return f"How many {what}?", f"{title(rest.removesuffix(' have'))} has {count} {noun}."
        noun, _, rest = what.partition(" are ")
        return f"How many {what}?", f"There are {count} {noun}{'' if rest == 'there' else ' ' + rest}."
    if table == 2:
        country, city = rng.choice(words.CAPITALS).split()
        return rng.choice([(f"What is the capital of {country}?", f"The capital of {country} is {city}."),
                           (f"Which city is the capital of {country}?", f"The capital of {country} is {city}."),
                           (f"Where is {city}?", f"{city} is the capital of {country}.")])
    if table == 3:
        animal, baby = rng.choice(words.BABIES).split()
        return tidy(rng.choice([f"What is a baby {animal} called?", f"What do you call a young {animal}?"])), tidy(
            f"A young {animal} is called a {baby}.")
    if table == 4:
        who, where = rng.choice(list(words.HOMES_OF.items()))
        return tidy(f"Where does a {who} live?"), tidy(f"A {who} lives in {where}.")
    if table == 5:
        thing, stuff = rng.choice(list(words.MAKES.items()))
        return f"What is {thing} made of?", f"{title(thing)} is made of {stuff}."
    thing, use = rng.choice(list(words.USED.items()))
    return rng.choice([(f"What is {thing} for?", f"You use {thing} to {use}."),
                       (f"What do you do with {thing}?", f"You use {thing} to {use}.")])


ONE_OF = {"fruits": "fruit", "vegetables": "vegetable", "colours": "colour", "birds": "bird", "planets": "planet",
          "tools": "tool", "musical instruments": "musical instrument", "trees": "tree", "flowers": "flower",
          "insects": "insect", "metals": "metal", "seasons": "season", "sports": "sport", "feelings": "feeling",
          "shapes": "shape", "countries": "country", "drinks": "drink"}
BARE = {"colours", "planets", "metals", "seasons", "sports", "feelings", "countries", "drinks"}


def q_list(rng):
    what, members = rng.choice(list(words.LISTS.items()))
    if what in ONE_OF and rng.random() < 0.25:
        thing = rng.choice(members)
        name = thing if what in BARE else "a " + thing
        return tidy(f"What is {name}?"), tidy(f"{title(name)} is a {ONE_OF[what]}.")
    count = rng.randint(2, min(5, len(members)))
    ask = State(rng).say(f"[Name|List|Tell me|Give me|Give me a list of|Can you name] {words.NUMBERS[count]} {what}.")
    if ask.startswith("Can"):
        ask = ask[:-1] + "?"
    chosen = rng.sample(members, count)
    if rng.random() < 0.5:
        return ask, "\n".join(f"{i}. {title(m)}" for i, m in enumerate(chosen, 1))
    return ask, title(", ".join(chosen[:-1]) + " and " + chosen[-1]) + "."


def q_repeat(rng):
    state = State(rng)
    text = rng.choice([
        lambda: state.say("[the|my|a] {look} {thing}").lower(), lambda: " ".join(invented(rng) for _ in range(rng.randint(1, 4))),
        lambda: state.say("the {adj} {animal} sat {place:place.at}.")])()
    return rng.choice([f"Repeat after me: {text}", f"Say: {text}", f"Repeat: {text}", f"Repeat this: {text}"]), text


def q_sentence(rng):
    state = State(rng)
    word = rng.choice([a_thing(rng, True), rng.choice(words.ANIMALS)])
    state.known["word"] = word
    return (rng.choice([f"Use the word '{word}' in a sentence.", f"Make a sentence with the word {word}.",
                        f"Write a sentence about a {word}."]),
            state.say(rng.choice(["The {look} {word} was {place:place.at}.", "We saw a {look} {word} {place:place.at}.",
                                  "One {time}, I saw a {word} {place:place.at}."])))


def q_poem(rng):
    state = State(rng, t1=rng.choice([t for t in words.THINGS if " " not in t]), a1=rng.choice(words.ANIMALS),
                  a2=rng.choice(words.ANIMALS))
    haiku = rng.random() < 0.3
    subjects, _, template = rng.choice(lines_of(facts.HAIKU if haiku else facts.POEMS)).partition(" : ")
    abouts = subjects.split(", ") * 2 + ["a " + state.known[slot] for slot in ("t1", "a1") if "{%s}" % slot in template]
    form = "haiku" if haiku else rng.choice(["poem", "poem", "short poem", "little poem", "rhyme"])
    ask = f"{rng.choice(['Write', 'Write', 'Tell me', 'Write me', 'Can you write'])} a {form}"
    if rng.random() < 0.75:
        ask += " about " + rng.choice(abouts)
    return tidy(ask + ("?" if ask.startswith("Can") else ".")), "\n".join(state.say(line) for line in template.split("|"))


def q_joke(rng):
    a, b = rng.choice(words.JOKES)
    return rng.choice(["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me something funny.", "A joke, please."]), f"{a} {b}"


def q_who(rng):
    return rng.choice(facts.WHO), pick_line(rng, facts.I_AM)


def q_scope(rng):
    if rng.random() < 0.25:
        return rng.choice(words.FOREIGN), pick_line(rng, facts.ENGLISH)
    if rng.random() < 0.15:
        noise = "".join(chr(rng.choice((rng.randint(33, 126), rng.randint(161, 1279), rng.randint(0x3041, 0x30FF),
                                        rng.randint(0x4E00, 0x9FFF), rng.randint(0x1F300, 0x1F64F))))
                        for _ in range(rng.randint(1, 12)))
        return noise, "I am sorry, I did not understand that. I am only a tiny demo model. Ask me for a story!"
    return rng.choice(words.SCOPE), pick_line(rng, facts.UNKNOWN)


def q_strange(rng):
    """A question like the known ones about something unknown."""
    known = set(words.ANIMALS) | set(words.THINGS) | set(words.MORE)
    word = invented(rng)
    while word in known:
        word = invented(rng)
    matter, matter2 = rng.sample(words.MATTERS, 2)
    country, country2 = rng.sample(words.COUNTRIES, 2)
    state = State(rng, word=word if rng.random() < 0.7 else word.capitalize(), matter=matter, matter2=matter2,
                  country=country if rng.random() < 0.8 else word.capitalize(), country2=country2,
                  name=a_name(rng, rng.random() < 0.5), surname=invented(rng).capitalize(), a_thing="a " + a_thing(rng, True),
                  language=rng.choice("C C++ Python Rust Java Swift Go JavaScript Haskell".split()),
                  n=str(rng.randint(101, 9999)), n2=str(rng.randint(101, 9999)), year=str(rng.randint(1200, 2030)))
    return state.say(rng.choice(lines_of(facts.STRANGE))), pick_line(rng, facts.UNKNOWN)


def q_animal(rng):
    """What the model knows about animals."""
    animal, group, food, home, more = rng.choice(words.BEASTS)
    plural = words.PLURALS.get(animal, animal + "s")
    pick = rng.random()
    if pick < 0.2:
        return tidy(rng.choice([f"What do {plural} eat?", f"What does a {animal} eat?"])), f"{title(plural)} eat {food}."
    if pick < 0.35:
        return tidy(rng.choice([f"Where do {plural} live?", f"Where can you find {plural}?"])), f"{title(plural)} live {home}."
    if pick < 0.45:
        ask = rng.choice([f"Tell me a fact about {plural}.", f"Tell me something about {plural}.", f"What is special about {plural}?"])
        return ask, more
    group = {"insect": "an insect", "amphibian": "an amphibian"}.get(group, "a " + group)
    first = f"a {animal} is {group}"
    rest = [f"{title(plural)} live {home}.", f"They eat {food}.", more]
    parts = [i for i in range(3) if rng.random() < 0.75]
    return (tidy(rng.choice([f"Tell me about {plural}.", f"Tell me about the {animal}.", f"What is a {animal}?",
                             f"What do you know about {plural}?", f"Explain what a {animal} is.", f"Describe a {animal}."])),
            tidy(" ".join([first + "."] + [rest[i] for i in parts])))


def q_advice(rng):
    ask, answer = rng.choice(list(facts.ADVICE.items()))
    return ask, State(rng).say(answer)


TOPICS = []
for _part in re.split(r"(?:^|\n)# ", facts.EXPLAIN)[1:]:
    _head, _, _body = _part.partition("\n")
    _names = [n.strip() for n in _head.split("|")]
    TOPICS.append((_names[0], _names[1:], lines_of(_body)))


def q_explain(rng):
    return explained(rng)[:2]


def explained(rng):
    """A question about a topic, the answer, and what could still be said about it."""
    topic, questions, lines = rng.choice(TOPICS)
    brief = rng.random() < 0.2
    asks = questions * 2 + [f"Explain {topic}.", f"Explain {topic} in simple terms.", f"Can you explain {topic}?",
                            f"Please explain {topic}."]
    if not topic.startswith("why "):
        asks += [f"Tell me about {topic}.", f"What do you know about {topic}?"] + ([f"What is {topic}?"] if not questions else [])
    ask = rng.choice(asks)
    more = list(range(1, len(lines)))
    taken = sorted(rng.sample(more, min(len(more), rng.randint(1, 4))))
    if brief:
        ask, taken = ask[:-1] + " in one sentence" + ask[-1], []
        ask = ask.replace(" in simple terms", "")
        first = re.match(r".*?[.]", State(rng).say(lines[0]))[0]
        return ask, first, []
    state = State(rng)
    left = [i for i in more if i not in taken]
    return ask, " ".join(state.say(lines[i]) for i in [0] + taken), [state.say(lines[i]) for i in left]


FIXED = [q_sum, q_sum, q_compare, q_count, q_next, q_letter, q_opposite, q_colour, q_sound, q_table, q_table, q_table]
OPEN = [q_list, q_repeat, q_sentence, q_poem, q_joke, q_who, q_who, q_scope, q_scope, q_strange, q_strange, q_strange, q_animal, q_animal,
        q_advice, q_explain, q_explain, q_explain,
        lambda rng: rng.choice(words.TALK), lambda rng: rng.choice(words.TALK), lambda rng: rng.choice(words.YES_NO), lambda rng: rng.choice(words.TRIVIA), lambda rng: rng.choice(words.TRIVIA)]


def question(rng):
    return rng.choice(FIXED if rng.random() < 0.45 else OPEN)(rng)


# --- Documents ------------------------------------------------------------------------------------------------------

def rough(rng, text):
    """A prompt as people type it: sometimes without its capital, its full stop or with a 'please'."""
    if text == DEFAULT_PROMPT or "\n" in text:
        return text
    pick = rng.random()
    if pick < 0.08 and text[-1] in ".?":
        text = text[:-1]
    elif pick < 0.14:
        text = text[0].lower() + text[1:].rstrip(".")
    elif pick < 0.17:
        text = text.lower().rstrip("?.")
    elif pick < 0.19 and text[-1] in ".?":
        text = text[:-1] + "!"
    return text


def turn(rng, ask, answer):
    return [("user", rough(rng, ask)), ("assistant", answer)]


def with_system(rng, doc):
    return [("system", rng.choice(facts.SYSTEMS))] + doc if rng.random() < 0.12 else doc


def doc_plain(rng):
    story = any_story(rng)
    text = story.text
    if rng.random() < 0.1:
        known, needs = story.state.known, story.plot.needs
        slot = next((slot for slot, need in (("thing", "thing"), ("palkind", "pal")) if need in needs), None)
        if slot:
            text = title(f"the {known['kind']} and the {known[slot]}") + "\n\n" + text
    return [(None, text)]


def story_turn(rng):
    ask, story = asked_story(rng)
    return turn(rng, ask, story.text), story


def doc_story(rng):
    return with_system(rng, story_turn(rng)[0])


def doc_continue(rng):
    first, rest, story = continued_story(rng)
    doc = [("user", first), ("assistant", rest)]
    return with_system(rng, doc + (after_story(rng, story) if rng.random() < 0.12 else []))


def after_story(rng, story):
    """A few turns that refer back to the story just told."""
    doc, asked = [], set()
    for _ in range(rng.randint(1, 4)):
        pick = rng.random()
        if pick < 0.65:
            ask, answer = story.question()
            if ask in asked:
                continue
            asked.add(ask)
            doc += turn(rng, ask, answer)
        elif pick < 0.82 and "summary" not in asked:
            asked.add("summary")
            ask = rng.choice(["Summarise the story.", "What was the story about?", "Can you give me a summary?",
                              "Tell it in one or two sentences.", "Summarize this story."])
            doc += turn(rng, ask, story.summary())
        elif pick < 0.95:
            doc += turn(rng, rng.choice(facts.THANKS), pick_line(rng, facts.WELCOME))
        else:
            doc += turn(rng, *question(rng))
    return doc


def doc_story_chat(rng):
    """A story followed by questions about it, or told in two parts."""
    doc = []
    if rng.random() < 0.2:
        doc += turn(rng, rng.choice(facts.HELLO), pick_line(rng, facts.HI))
    turns, story = story_turn(rng)
    if rng.random() < 0.2 and len(story.paragraphs) > 2:
        at = rng.randint(1, len(story.paragraphs) - 1)
        turns = [turns[0], ("assistant", "\n\n".join(story.paragraphs[:at]))]
        turns += turn(rng, rng.choice(["Go on.", "What happened next?", "And then?", "Continue.", "Tell me more.",
                                       "How does it end?"]), "\n\n".join(story.paragraphs[at:]))
    return with_system(rng, doc + turns + after_story(rng, story))


def doc_question(rng):
    return with_system(rng, turn(rng, *question(rng)))


def doc_chat(rng):
    """Several small exchanges; a name told early may be asked for later."""
    doc, name = [], None
    if rng.random() < 0.4:
        doc += turn(rng, rng.choice(facts.HELLO), pick_line(rng, facts.HI))
    if rng.random() < 0.35:
        name = a_name(rng, rng.random() < 0.5)
        likes = rng.choice(words.FOODS + [a + "s" for a in words.ANIMALS if a[-1] not in "yxsf" and a not in ("mouse", "goose", "deer", "sheep")])
        ask, fact = rng.choice([(f"My name is {name}.", "name"), (f"I am {name}.", "name"), (f"I am called {name}.", "name"),
                                (f"I like {likes}.", "likes")])
        back = {"name": rng.choice([f"Nice to meet you, {name}!", f"Hello {name}! How can I help you?"]),
                "likes": rng.choice([f"{title(likes)} are a good thing to like." if likes.endswith("s") else f"I have heard that {likes} is very good.", "That is good to know!"])}[fact]
        doc += turn(rng, ask, back)
        name = ("What is my name?", f"Your name is {name}.") if fact == "name" else ("What do I like?", f"You like {likes}.")
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.2:
            ask, answer, left = explained(rng)
            doc += turn(rng, ask, answer)
            if left:
                doc += turn(rng, rng.choice(["Tell me more.", "What else?", "Go on.", "Can you tell me more?"]), " ".join(left))
        else:
            doc += turn(rng, *question(rng))
    if name:
        doc += turn(rng, *name)
    if rng.random() < 0.2:
        doc += turn(rng, rng.choice(facts.THANKS[:5]), State(rng).say("You are welcome![ Ask me anything you like.|]"))
    if rng.random() < 0.2:
        doc += turn(rng, rng.choice(facts.BYE), pick_line(rng, facts.FAREWELL))
    return with_system(rng, doc)


def doc_steered(rng):
    """A system prompt that changes the answers: a name, or a word that opens every answer."""
    if rng.random() < 0.5:
        name = a_name(rng, rng.random() < 0.5)
        doc = turn(rng, rng.choice(["Who are you?", "What is your name?", "Hello, who are you?"]),
                   rng.choice([f"I am {name}, a tiny demo model.", f"My name is {name}. I am a tiny demo model inside mlx_lm."]))
        return [("system", rng.choice([f"Your name is {name}.", f"You are {name}.", f"You are called {name}."]))] + doc
    word = rng.choice(["Ahoy", "Well", "Hello", "Yes", "Oh", "Dear friend", invented(rng).capitalize()])
    doc = []
    for _ in range(rng.randint(1, 3)):
        ask, answer = rng.choice(FIXED)(rng)
        doc += turn(rng, ask, f"{word}! {answer}")
    return [("system", rng.choice([f"Begin every answer with '{word}!'", f"Always start with '{word}!'"]))] + doc


def doc_hello(rng):
    doc = turn(rng, rng.choice(facts.HELLO), pick_line(rng, facts.HI))
    if rng.random() < 0.4:
        doc += story_turn(rng)[0]
    elif rng.random() < 0.5:
        doc += turn(rng, *q_who(rng))
    return with_system(rng, doc)


MIX = [(doc_story, 24), (doc_continue, 20), (doc_plain, 9), (doc_story_chat, 12), (doc_question, 30), (doc_chat, 14),
       (doc_steered, 3), (doc_hello, 3)]
_KINDS, _WEIGHTS = zip(*MIX)


def documents(seed, chunk, count):
    """`count` documents; the chunks of one seed can be made in any order, by any number of processes."""
    rng = random.Random(f"{seed}/{chunk}")
    for _ in range(count):
        yield rng.choices(_KINDS, _WEIGHTS)[0](rng)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--count", type=int, default=10, help="how many documents to print")
    args = args.parse_args()
    for doc in documents(args.seed, 0, args.count):
        print(render(doc), end="\n\n")


if __name__ == "__main__":
    main()
