"""The word pools of the demo corpus: names, animals, things, places and the small facts about them."""

import re

GIRLS = """Mila Anna Lily Nora Ella Ruby Rosa Clara Emma Ivy Maya Zoe Lucy Alice Grace Hana Ines Julia Kira Lena Luna
Maria Nina Olive Pearl Sara Sofia Tara Vera Willa Yuki Amara Bella Carmen Daisy Elsa Freya Greta Hazel Iris Jenny
Katya Leila Matilda Nadia Ophelia Petra Rita Sally Tilda Una Wendy Yasmin Zara Poppy Fern Dora Edith Fatima Priya
Mei Aisha Ada Marie Pippa Molly Tess Robin Juno Opal""".split()

BOYS = """Tom Max Leo Ben Sam Jack Oscar Hugo Felix Theo Finn Noah Adam Arlo Bruno Carlos David Emil Frank George
Henry Ivan Jonas Karim Liam Marco Nico Otto Paul Ravi Simon Tariq Victor Walter Yusuf Zack Albert Boris Colin Diego
Edgar Fred Gus Harry Igor James Kofi Lars Mateo Ned Owen Peter Quinn Rufus Stefan Toby Uri Vito Will Kenji Amir Alan
Isaac Pip Rowan Jasper Milo Barney Ollie Einstein Newton""".split()

# The animals that act in the stories, and what each one says.
SOUNDS = {
    "cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "lamb": "baa", "goat": "maa", "pig": "oink",
    "horse": "neigh", "donkey": "hee-haw", "duck": "quack", "hen": "cluck", "rooster": "cock-a-doodle-doo",
    "goose": "honk", "frog": "ribbit", "owl": "hoo-hoo", "bee": "buzz", "lion": "roar", "wolf": "howl",
    "snake": "hiss", "mouse": "squeak", "crow": "caw", "dove": "coo", "turkey": "gobble", "bird": "tweet",
    "elephant": "trumpet", "bear": "growl", "tiger": "roar", "puppy": "yip", "kitten": "mew", "cricket": "chirp",
}
ANIMALS = """fox rabbit hedgehog mouse bear badger squirrel otter beaver mole owl duck frog turtle cat dog goat lamb
donkey pony deer hare hamster kitten puppy raccoon penguin goose sparrow robin crow lizard snail ladybird panda koala
kangaroo monkey elephant lion tiger wolf giraffe zebra camel llama sheep pig hen rooster weasel lynx moose parrot
swan chipmunk porcupine toad tortoise bat ferret bunny cub fawn gecko meerkat lemur sloth hippo""".split()
SEA = "whale dolphin crab seal octopus starfish seahorse turtle fish shrimp lobster squid".split()
CREATURES = """dragon unicorn giant troll fairy elf gnome ghost monster mermaid wizard witch phoenix griffin dwarf
goblin snowman scarecrow""".split()
PEOPLE = """baker farmer sailor painter teacher doctor gardener fisherman shepherd tailor carpenter miller cook
clockmaker librarian postman musician knight princess prince king queen pirate astronaut scientist inventor explorer
nurse pilot potter poet blacksmith beekeeper weaver dancer singer detective traveller shoemaker astronomer""".split()
ROBOTS = ["robot", "little robot", "machine", "cleaning robot", "garden robot", "computer"]
ELDERS = """owl tortoise badger crow hare heron stork raven toad goat woman man fisherman shepherd gardener miller
librarian clockmaker grandmother grandfather beekeeper weaver""".split()
STRANGERS = """squirrel robin sparrow hedgehog butterfly beetle mole wren lamb kitten puppy duckling goose mouse rabbit
frog snail bee fawn dove bat crane swallow moth lizard hamster""".split()

THINGS = """lantern key kite drum flute bell book map compass button hat scarf basket mirror candle clock whistle coin
ring shell feather stone marble box pencil brush cup spoon blanket pillow umbrella boot glove ribbon ball toy boat doll
teapot watch violin harp guitar trumpet telescope magnet ladder bucket broom needle thimble purse letter postcard
picture crown necklace bracelet pebble acorn pinecone seed flower rose apple pear pumpkin egg hammer saw lamp torch
rope wheel pocket-knife notebook stamp puzzle spinning top puppet teddy bear rocking horse snow globe music box paper
boat wooden sword tin soldier toy train magic carpet golden bowl silver fork glass bottle wool sock straw hat
backpack suitcase camera radio bicycle balloon wand potion diary jar kettle cushion crystal jewel""".split()
_PAIRS = ["spinning top", "teddy bear", "rocking horse", "snow globe", "music box", "paper boat", "wooden sword",
          "tin soldier", "toy train", "magic carpet", "golden bowl", "silver fork", "glass bottle", "wool sock",
          "straw hat"]
_PARTS = {part for pair in _PAIRS for part in pair.split()}
MORE = """toaster submarine spaceship rocket tractor car bus train ship aeroplane banana pizza sandwich cookie cupcake
carrot potato cheese lollipop doughnut chair table bench sofa desk shelf carpet curtain window door gate fence chimney
statue painting poem song dictionary newspaper typewriter keyboard calculator telephone television fridge oven pan
plate knife bowl mug barrel crate trunk chest pouch tent hammock lighthouse windmill bridge castle tower house tree
mushroom cactus leaf branch root vine star planet comet meteor cloud rainbow volcano mountain island iceberg puddle
snowflake tooth bone horn tail wing nest web cocoon helmet shield sword arrow bow anchor sail oar paddle propeller
engine battery wire lightbulb microscope prism hourglass calendar ticket passport medal trophy flag banner mask costume
coat jacket sweater belt shoe slipper skate sledge ski surfboard skateboard scooter wagon cart carriage saddle bottle
pitcher teacup sugar spice pepper muffin waffle biscuit bagel pretzel dice card chessboard domino yo-yo swing slide
trampoline piano cello clarinet saxophone accordion tambourine xylophone microphone loudspeaker chainsaw drill spade
rake shovel wheelbarrow watering can scarecrow beehive birdhouse doghouse fountain well pond garden seashell coral
pearl ruby diamond emerald nugget fossil skeleton treasure secret riddle dream shadow echo whisper""".split()
MORE = [t for t in MORE if t not in ("can", "watering", "sugar", "spice", "pepper", "cheese", "secret", "skeleton")]
THINGS = [t for t in THINGS if t not in _PARTS - {"boat", "hat", "box", "bottle", "bowl", "toy"}] + _PAIRS

COLOURS = "red blue green yellow orange purple white black pink brown grey golden silver".split()
LOOKS = """small tiny big old new shiny round wooden painted striped soft bright pretty simple heavy smooth strange
beautiful dusty little curious lovely plain spotted""".split() + COLOURS
ADJ = """little small young kind brave shy clever quiet cheerful curious gentle friendly lonely patient proud busy sleepy
honest careful playful thoughtful stubborn dreamy lively merry tiny polite grumpy hopeful wise nervous bold""".split()
FEEL_GOOD = "happy proud glad warm cheerful thankful calm lucky delighted".split()
FEEL_BAD = "sad worried lonely tired afraid upset nervous gloomy".split()
WEATHER = ["sunny", "rainy", "windy", "cloudy", "snowy", "foggy", "stormy", "warm", "cold", "bright", "frosty"]
TIMES = """morning|evening|afternoon|spring morning|summer day|autumn day|winter evening|rainy afternoon|sunny morning
windy day|cold morning|warm evening|quiet Sunday|bright Monday|misty morning|summer evening|winter morning|market day
Saturday morning|golden afternoon""".replace("\n", "|").split("|")

# 'preposition|place': a template reads the place as {x} and with its preposition as {x.at}.
PLACES = """in|the forest by|the river on|the hill in|the meadow by|the lake in|the old barn at|the market by|the sea
in|the garden near|the windmill under|the bridge in|the valley at|the harbour in|the library on|the beach in|the cave
by|the well in|the orchard near|the waterfall by|the pond in|the village square behind|the bakery on|the mountain path
in|the tall grass at|the edge of the woods in|the desert on|the island by|the lighthouse in|the wheat field
at|the railway station by|the mill under|the old oak tree in|the greenhouse near|the old tower in|the snow
in|the attic in|the museum on|the rooftop at|the crossroads in|the rose garden by|the stream in|the hollow log
behind|the stone wall near|the castle in|the jungle in|the kitchen by|the garden gate in|the courtyard
on|the wooden pier among|the tall reeds under|the willow tree"""
PLACES = [p.strip().replace("\n", " ") for p in re.findall(r"\w+\|.*?(?=\s\w+\||$)", PLACES, re.S)]
HOMES = ["in|a small house by the river", "in|a cottage at the edge of the forest", "in|a quiet village",
         "in|a little town by the sea", "near|an old windmill", "on|a farm in the hills", "on|a small island",
         "in|a crooked house on a hill", "at|the foot of a tall mountain", "in|a warm burrow under an oak tree",
         "in|a green valley", "beside|a clear blue lake", "in|a busy city", "in|a red house with a round door",
         "at|the end of a long road", "in|a village where it often rained", "in|the north, where the winters were long",
         "near|a wide and sleepy river", "in|a tower full of books", "on|the edge of a great desert",
         "in|a village between two hills", "under|the roots of an old tree", "in|a tiny house behind the bakery",
         "in|a lighthouse above the sea", "beside|a bridge of grey stone", "in|a garden full of roses"]
INDOORS = ("library", "museum", "attic", "kitchen", "greenhouse", "station", "market", "barn", "square", "courtyard")
OUTSIDE = [p for p in PLACES if not p.endswith(INDOORS)]
SCENES = """lighthouse mill castle library station theatre tower bridge house garden ship school bakery museum inn
harbour windmill church palace farm cottage factory market well forest mine circus cinema bookshop fortress barn hotel
workshop observatory greenhouse temple village playground zoo post office clock tower town hall""".replace(
    "post office", "").replace("clock tower", "").replace("town hall", "").split() + ["clock tower", "town hall", "post office"]
FOODS = ["warm bread", "apple pie", "berry soup", "honey cake", "hot porridge", "fresh cheese", "sweet pears",
         "pumpkin soup", "toast with jam", "vegetable stew", "ginger biscuits", "pancakes", "roasted nuts",
         "plum cake", "hot chocolate", "rice with beans", "mushroom soup", "noodles", "blueberry muffins",
         "buttered corn"]
SKILLS = ["to swim", "to bake bread", "to sing", "to play the flute", "to paint", "to read", "to whistle", "to dance",
          "to ride a bicycle", "to climb", "to sew", "to skate", "to juggle", "to row a boat", "to write poems",
          "to fly a kite", "to play the drum", "to grow tomatoes", "to count to a hundred", "to tell stories",
          "to cook soup", "to speak in front of others", "to tie knots", "to play chess", "to fix clocks"]
FEARS = ["the dark", "thunder", "deep water", "high places", "the long tunnel", "loud noises", "strangers",
         "the old forest", "the night wind", "being alone", "big waves", "the empty house"]
BUILDS = ["boat", "kite", "tree house", "bridge", "raft", "sledge", "birdhouse", "windmill", "cart", "snow house",
          "swing", "wooden cabin", "flying machine", "sand castle", "small stage", "telescope", "bench"]
PLANTS = ["sunflower", "apple tree", "pumpkin", "rose", "bean", "cherry tree", "tulip", "pear tree", "strawberry plant",
          "lemon tree", "daisy", "oak tree"]
FEASTS = ["the lantern festival", "the harvest feast", "the spring dance", "the winter fair", "the summer concert",
          "the boat race", "the kite day", "the village party", "the night of songs", "the flower parade"]
PLANETS = ["Ola", "Terra", "Lumo", "Mira", "Vela", "Nim", "Sola", "Aru", "Pell", "Ondo", "Kessa", "Tuva"]

# Small facts: each list is a table of a kind of question.
OPPOSITES = """hot cold|big small|tall short|fast slow|up down|happy sad|day night|open closed|light dark|wet dry|old new
hard soft|full empty|loud quiet|early late|left right|in out|black white|good bad|rich poor|strong weak|young old
near far|high low|clean dirty|easy difficult|thick thin|heavy light|first last|inside outside|push pull|asleep awake
start finish|win lose|give take|front back|true false|sharp blunt|smooth rough|above below|before after|always never
buy sell|love hate|question answer|brave cowardly|deep shallow|wide narrow|sweet sour|friend enemy|summer winter
more less|top bottom|yes no|on off|come go|laugh cry|find lose|remember forget|north south|east west|sunrise sunset
""".strip().replace("\n", "|").split("|")
COLOUR_OF = """the sky blue|grass green|snow white|the sun yellow|a banana yellow|a ripe strawberry red|coal black
a carrot orange|the sea blue|a lemon yellow|milk white|a leaf green|blood red|chocolate brown|an orange orange
a polar bear white|a raven black|a flamingo pink|a tomato red|a frog green|a cloud white|an elephant grey|a plum purple
a pumpkin orange|sand yellow|the night sky black|a cherry red|a pea green|honey golden|a fire engine red|a canary yellow
a swan white|rust brown|cotton white|broccoli green|a blueberry blue|a violet purple|salt white|a fox red|a crow black
""".strip().replace("\n", "|").split("|")
LEGS = {"dog": 4, "cat": 4, "spider": 8, "bird": 2, "ant": 6, "bee": 6, "horse": 4, "cow": 4, "chicken": 2, "snake": 0,
        "fish": 0, "frog": 4, "butterfly": 6, "person": 2, "elephant": 4, "duck": 2, "table": 4, "octopus": 0,
        "mouse": 4, "beetle": 6}
COUNTS = {"days are in a week": "seven", "months are in a year": "twelve", "hours are in a day": "twenty-four",
          "minutes are in an hour": "sixty", "seconds are in a minute": "sixty", "letters are in the English alphabet":
          "twenty-six", "sides does a triangle have": "three", "sides does a square have": "four",
          "wheels does a bicycle have": "two", "wheels does a car have": "four", "arms does an octopus have": "eight",
          "seasons are in a year": "four", "planets are in our solar system": "eight", "fingers are on one hand": "five",
          "days are in a year": "365", "legs does a spider have": "eight", "legs does an insect have": "six",
          "eyes does a person have": "two", "colours are in a rainbow": "seven", "continents are there": "seven",
          "strings does a violin have": "four", "days are in a weekend": "two", "things are in a dozen": "twelve",
          "centimetres are in a metre": "one hundred", "years are in a century": "one hundred"}
CAPITALS = """France Paris|Italy Rome|Spain Madrid|Germany Berlin|Japan Tokyo|England London|China Beijing|Egypt Cairo
Greece Athens|Portugal Lisbon|Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Poland Warsaw
Austria Vienna|Russia Moscow|Ireland Dublin|Kenya Nairobi|Cuba Havana|Peru Lima|Canada Ottawa|Hungary Budapest
Belgium Brussels|Thailand Bangkok|Scotland Edinburgh|Wales Cardiff|Chile Santiago|Turkey Ankara|Iceland Reykjavik
""".strip().replace("\n", "|").split("|")
BABIES = """cat kitten|dog puppy|cow calf|sheep lamb|horse foal|hen chick|duck duckling|goose gosling|bear cub|lion cub
deer fawn|frog tadpole|pig piglet|goat kid|swan cygnet|owl owlet|kangaroo joey|butterfly caterpillar|fox cub|eagle eaglet
""".strip().replace("\n", "|").split("|")
HOMES_OF = {"bird": "a nest", "bee": "a hive", "rabbit": "a burrow", "fox": "a den", "horse": "a stable",
            "spider": "a web", "fish": "water", "pig": "a sty", "lion": "the grassland", "camel": "the desert",
            "penguin": "the cold south", "bat": "a cave", "squirrel": "a tree", "cow": "a barn", "frog": "a pond",
            "whale": "the sea", "king": "a castle", "ant": "an anthill", "mole": "a tunnel", "bear": "the forest"}
MAKES = {"bread": "flour, water, salt and yeast", "cheese": "milk", "butter": "cream", "paper": "wood",
         "glass": "sand", "wool": "the coat of a sheep", "honey": "nectar from flowers", "wine": "grapes",
         "chocolate": "cocoa beans", "juice": "fruit", "a brick": "clay", "jam": "fruit and sugar", "ice": "frozen water",
         "a candle": "wax", "a snowman": "snow", "silk": "the thread of silkworms", "yogurt": "milk", "steel": "iron",
         "soup": "water and vegetables", "a raisin": "a dried grape", "an omelette": "eggs", "a key": "metal"}
USED = {"an umbrella": "keep dry in the rain", "a key": "open a lock", "a clock": "tell the time", "a pen": "write",
        "a spoon": "eat soup", "a bed": "sleep", "a boat": "travel over water", "a lamp": "light a room",
        "a broom": "sweep the floor", "a map": "find the way", "a compass": "find north", "a needle": "sew",
        "a saw": "cut wood", "a kettle": "boil water", "a telescope": "look at the stars", "a ladder": "climb up high",
        "a coat": "keep warm", "a bell": "call people", "a hammer": "drive in nails", "a bridge": "cross a river",
        "a pillow": "rest the head", "a basket": "carry things", "a mirror": "see yourself", "a bucket": "carry water",
        "a thermometer": "measure how warm it is", "a calendar": "keep track of the days", "a fridge": "keep food cold"}
LISTS = {
    "fruits": "apple banana pear orange plum cherry grape lemon mango peach melon strawberry",
    "vegetables": "carrot potato onion tomato cabbage bean pea pumpkin leek spinach",
    "colours": "red blue green yellow orange purple white black pink brown",
    "animals": "cat dog horse lion bear fox rabbit elephant tiger monkey cow sheep",
    "birds": "sparrow robin owl crow eagle duck swan goose parrot penguin",
    "sea animals": "whale dolphin crab seal octopus shark lobster squid",
    "farm animals": "cow pig sheep goat horse hen duck donkey",
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "tools": "hammer saw drill spade axe screwdriver",
    "musical instruments": "piano violin guitar flute drum trumpet harp cello",
    "trees": "oak pine birch willow maple beech elm",
    "flowers": "rose tulip daisy lily sunflower violet poppy",
    "clothes": "shirt coat hat sock shoe scarf glove dress",
    "shapes": "circle square triangle rectangle oval star",
    "drinks": "water milk tea coffee juice lemonade",
    "things in a kitchen": "pot pan kettle spoon fork plate cup oven",
    "things in a school": "desk book pencil board chair map",
    "insects": "bee ant butterfly beetle fly moth",
    "metals": "iron gold silver copper tin lead",
    "countries": "France Italy Spain Japan China Egypt Peru Canada",
    "seasons": "spring summer autumn winter",
    "parts of the body": "head arm leg hand foot eye ear nose",
    "sports": "football tennis swimming running skating rowing",
    "feelings": "joy sadness anger fear pride hope",
}
LISTS = {k: v.split() for k, v in LISTS.items()}
BIGGER = """ant mouse cat dog sheep horse elephant whale""".split()
FASTER = """snail tortoise duck person horse car train aeroplane rocket""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()
YES_NO = """Is fire hot?|Yes, fire is very hot.
Is ice warm?|No, ice is cold.
Can fish swim?|Yes, fish swim very well.
Can a penguin fly?|No, a penguin cannot fly, but it swims very well.
Is the sun a star?|Yes, the sun is a star.
Is the moon made of cheese?|No, the moon is made of rock.
Do birds lay eggs?|Yes, birds lay eggs.
Is a whale a fish?|No, a whale is a mammal that lives in the sea.
Is a spider an insect?|No, a spider is not an insect. It has eight legs.
Is water wet?|Yes, water is wet.
Can pigs fly?|No, pigs cannot fly.
Is the earth round?|Yes, the earth is round like a ball.
Is a tomato a fruit?|Yes, a tomato is a fruit, although we cook with it like a vegetable.
Do plants need water?|Yes, plants need water and light to grow.
Is sugar sweet?|Yes, sugar is sweet.
Is a lemon sweet?|No, a lemon is sour.
Does the sun rise in the east?|Yes, the sun rises in the east.
Do cats bark?|No, cats meow. Dogs bark.
Can a stone swim?|No, a stone sinks in water.
Does wood float?|Yes, most wood floats on water.
Is the sea salty?|Yes, the water of the sea is salty.
Do fish have feathers?|No, fish have scales. Birds have feathers.
Is gold a metal?|Yes, gold is a metal.
Is ten bigger than five?|Yes, ten is bigger than five.
Do snakes have legs?|No, snakes have no legs.
Can you see in the dark?|No, without any light nobody can see.
Is winter colder than summer?|Yes, winter is colder than summer.
Do trees have leaves?|Yes, most trees have leaves.
Are you a human?|No, I am a tiny language model.
Are you alive?|No, I am only a small program that writes text.
Can you think?|Not as you do. I am a tiny model that guesses the next word.
Do you have feelings?|No, I am a program, so I have no feelings.
Do you sleep?|No, I am a program, so I never sleep.
Can you help me?|I can try. I am a tiny demo model, so I am best at short stories and simple questions.
Are you real?|I am a real program, but a very small one."""
YES_NO = [tuple(line.split("|")) for line in YES_NO.split("\n")]
TRIVIA = """What do bees make?|Bees make honey.
What do cows give us?|Cows give us milk.
What do hens lay?|Hens lay eggs.
What falls from the clouds?|Rain and snow fall from the clouds.
What shines at night?|The moon and the stars shine at night.
What is the biggest animal?|The blue whale is the biggest animal.
What is the tallest animal?|The giraffe is the tallest animal.
What is the fastest land animal?|The cheetah is the fastest land animal.
What is the largest planet?|Jupiter is the largest planet in our solar system.
What is the smallest planet?|Mercury is the smallest planet in our solar system.
Which planet do we live on?|We live on planet Earth.
Which planet is red?|Mars is called the red planet.
What is the nearest star?|The sun is the star nearest to us.
What is the longest river?|The Nile is often called the longest river.
What is the highest mountain?|Mount Everest is the highest mountain.
What is the largest ocean?|The Pacific is the largest ocean.
What do plants need to grow?|Plants need water, light and air to grow.
What do we breathe?|We breathe air.
What do rabbits eat?|Rabbits eat grass, leaves and carrots.
What do pandas eat?|Pandas eat bamboo.
What do you call frozen water?|Frozen water is called ice.
Where does the sun rise?|The sun rises in the east.
Where does the sun set?|The sun sets in the west.
When do we eat breakfast?|We eat breakfast in the morning.
When do owls hunt?|Owls hunt at night.
What do we see with?|We see with our eyes.
What do we hear with?|We hear with our ears.
What do we smell with?|We smell with the nose.
Who bakes bread?|A baker bakes bread.
Who grows food?|A farmer grows food.
Who flies an aeroplane?|A pilot flies an aeroplane.
Who works in a library?|A librarian works in a library.
Who looks after sick people?|Doctors and nurses look after sick people.
Who catches fish?|A fisherman catches fish.
Who wrote you?|I was trained from scratch as a small example for mlx_lm.
What is the first month of the year?|The first month of the year is January.
What is the last month of the year?|The last month of the year is December.
What is the first letter of the alphabet?|The first letter of the alphabet is A.
What is the last letter of the alphabet?|The last letter of the alphabet is Z.
What are the colours of a traffic light?|The colours of a traffic light are red, yellow and green.
What are the colours of the rainbow?|The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
What are the four seasons?|The four seasons are spring, summer, autumn and winter.
What is half of ten?|Half of ten is five.
What is twice four?|Twice four is eight.
What do you get if you mix blue and yellow?|If you mix blue and yellow, you get green.
What do you get if you mix red and yellow?|If you mix red and yellow, you get orange.
What do you get if you mix red and blue?|If you mix red and blue, you get purple.
What do you get if you mix black and white?|If you mix black and white, you get grey.
What is the meaning of life?|Many wise people have asked. I think that it helps to be kind and to stay curious.
What is love?|Love is caring for someone very much and wanting good things for them.
What is happiness?|Happiness is the warm feeling of being content.
What is your favourite colour?|I have no eyes, but I like the word blue.
What is your favourite animal?|I like to tell stories about foxes.
What is your favourite food?|I do not eat, but I like the sound of honey cake.
What is the answer to everything?|I do not know the answer to everything, but being kind is a good start.
How are you?|I am fine, thank you. How are you?
How old are you?|I am a program, so I have no birthday. I was trained not long ago.
Where do you live?|I live inside this program, in a file of a few megabytes.
What can you do?|I can tell short stories, answer simple questions and explain a few things.
What do you know?|I know only a little: animals, colours, small sums and many small stories.
What is the time?|I have no clock, so I cannot tell you the time.
What day is it today?|I have no calendar, so I do not know what day it is today.
What is the weather like?|I have no window, so I cannot see the weather.
How do you work?|I read the words so far and guess the next one, again and again.
How big are you?|I am very small: about six million numbers, stored in a few megabytes.""".split("\n")
TRIVIA = [tuple(line.split("|")) for line in TRIVIA]
JOKES = """Why did the clock stay at home?|Because it had too much time on its hands and nowhere to go.
Why was the broom so tired?|Because it had swept all day and never slept.
What did the big candle say to the small candle?|"You look bright today."
Why did the book go to the doctor?|Because its back was hurting.
Why did the snail buy a map?|Because it wanted to get lost faster.
What did the left sock say to the right sock?|"We make a fine pair, until washing day."
Why did the cloud go to school?|Because it wanted to be a little brighter.
Why did the spoon leave the party?|Because somebody was stirring up trouble.
Why did the robot eat a lamp?|Because it wanted a light lunch.
Why did the moon stay up all night?|Because nobody told it to go to bed.
Why did the penguin bring a ladder?|Because it wanted to reach a higher grade of ice.
What did the pillow say to the bed?|"You can lean on me."
Why did the key feel proud?|Because it could open any conversation.
Why did the kettle sing?|Because it was full of hot air.
Why did the ghost buy a blanket?|Because its old one had gone right through.
Why was the tree good at keeping promises?|Because it always stayed where it was.""".split("\n")
JOKES = [tuple(line.split("|")) for line in JOKES]
SCOPE = """What is the GDP of France?|Who won the election?|What is the square root of 7345?|Write a quicksort in C++.
Write a Python program that sorts a list.|Who is the president of the United States?|Translate this text into German.
What is the population of Brazil?|Solve this differential equation.|What is the price of gold today?|Who wrote War and Peace?
Give me legal advice.|What medicine should I take?|How do I fix my car?|What happened in 1789?|Prove that pi is irrational.
What is the melting point of tungsten?|Who invented the transistor?|Summarise the French Revolution.|Write a business plan.
What is the best laptop to buy?|Book me a flight to Rome.|What is the stock price of Apple?|Write an essay about economics.
What is 48372 times 9921?|Who painted the ceiling of the chapel?|Explain the tax law.|Fix the bug in my code.
What is the chemical formula of caffeine?|How do I install Linux?|Write a SQL query.|What did Kant think about reason?
Who won the football match yesterday?|Compose a symphony.|What is the distance to Andromeda?|List all the kings of England.
What is the airspeed of a swallow?|Write a regular expression for e-mail addresses.|Debug this function.|What is the news today?
Draw me a picture.|Search the web for me.|Write a unit test.|What is a monad?|Explain general relativity in detail.
How do I cook a turkey?|What is the inflation rate?|Which phone should I buy?|Who is the best singer?|What is a derivative?
Write a JSON schema for a person.|Implement a binary tree in Rust.|What is the boiling point of ethanol?|Who discovered penicillin?
Plan a trip to Norway.|What is the speed of sound in steel?|How many people live in Tokyo?|Write a cover letter for me.
What is the meaning of the word epistemology?|Compare socialism and capitalism.|Convert 17 miles to kilometres.
def main():|SELECT * FROM users;|What are the side effects of aspirin?|Who was the third emperor of Rome?|Tell me about Kubernetes.
What is the plot of Hamlet?|Give me a recipe for lasagne.|How does the stock market work?|What is a blockchain?
Write an e-mail to my boss.|Who will win the next World Cup?|What is the exchange rate of the dollar?|Explain DNA replication."""
SCOPE = SCOPE.replace("\n", "|").split("|")
FOREIGN = """Bonjour, comment ça va ?|Guten Tag, wie geht es dir?|Hola, ¿qué tal?|Ciao, come stai?|你好，你是谁？|こんにちは
Привет, как дела?|안녕하세요|مرحبا|नमस्ते|Olá, tudo bem?|Hej, hur mår du?|Γειά σου|שלום|Merhaba|สวัสดี|Dzień dobry
Kan du fortælle en historie?|Erzähle mir eine Geschichte.|Raconte-moi une histoire.|Cuéntame un cuento.|讲一个故事"""
FOREIGN = FOREIGN.replace("\n", "|").split("|")

# Animals that the model knows something about: class, food, home and one more fact.
BEASTS = """cat|mammal|meat and fish|with people|Cats sleep a lot and can see well when there is little light.
dog|mammal|meat and many other things|with people|Dogs have a very good nose and like to be with people.
fox|mammal|mice, berries and insects|in forests and fields|Foxes have a bushy tail and sharp ears.
rabbit|mammal|grass and leaves|in burrows|Rabbits have long ears and can run very fast.
bear|mammal|berries, fish and roots|in forests and mountains|Many bears sleep through the winter.
lion|mammal|meat|in the grasslands of Africa|Lions live in groups, and their roar can be heard from far away.
tiger|mammal|meat|in the forests of Asia|Tigers have stripes, and they like to swim.
elephant|mammal|grass, leaves and bark|in Africa and Asia|Elephants have a long trunk and a very good memory.
giraffe|mammal|leaves|in the grasslands of Africa|Giraffes have a very long neck, so they can reach the leaves of tall trees.
wolf|mammal|meat|in forests and mountains|Wolves live in packs and howl to call each other.
horse|mammal|grass and hay|on farms and wide plains|Horses can run fast and can sleep while they stand.
cow|mammal|grass|on farms|Cows give milk and chew their food twice.
sheep|mammal|grass|on farms and hills|Sheep give us wool.
pig|mammal|almost everything|on farms|Pigs are very clever animals.
goat|mammal|grass and leaves|on farms and mountains|Goats can climb very well.
mouse|mammal|seeds and grain|in fields and houses|Mice are small and have long tails.
squirrel|mammal|nuts and seeds|in trees|Squirrels hide nuts for the winter.
hedgehog|mammal|insects and worms|in gardens and hedges|Hedgehogs roll up into a ball when they are afraid.
beaver|mammal|bark and leaves|at rivers and lakes|Beavers build dams of wood and mud.
otter|mammal|fish|at rivers and at the sea|Otters are very good swimmers and like to play.
whale|mammal|small animals of the sea|in the sea|Whales breathe air and sing long songs under water.
dolphin|mammal|fish|in the sea|Dolphins are clever and jump out of the water.
bat|mammal|insects and fruit|in caves and under roofs|Bats are the only mammals that can really fly.
monkey|mammal|fruit and leaves|in warm forests|Monkeys can climb very well.
kangaroo|mammal|grass|in Australia|Kangaroos jump on their strong back legs and carry their young in a pouch.
panda|mammal|bamboo|in the mountains of China|Pandas are black and white.
camel|mammal|dry plants|in the desert|Camels can live for a long time without water.
owl|bird|mice and insects|in forests and old barns|Owls fly without a sound and hunt at night.
eagle|bird|fish and small animals|in the mountains|Eagles have very sharp eyes.
duck|bird|plants and small animals|at ponds and lakes|Ducks have feathers that keep the water out.
penguin|bird|fish|in the cold south|Penguins cannot fly, but they swim very well.
crow|bird|almost everything|in fields and towns|Crows are very clever and can use tools.
sparrow|bird|seeds|in towns and fields|Sparrows are small and brown and live in groups.
parrot|bird|fruit and seeds|in warm forests|Some parrots can learn to say words.
hen|bird|grain and worms|on farms|Hens lay eggs.
frog|amphibian|insects|at ponds|Frogs begin their life as tadpoles in the water.
turtle|reptile|plants and small animals|in the water|Turtles have a hard shell and can live very long.
snake|reptile|mice and other animals|in many places|Snakes have no legs and smell with their tongue.
lizard|reptile|insects|in warm places|Some lizards can drop their tail to get away.
bee|insect|nectar and pollen|in hives|Bees make honey and dance to show each other the way.
ant|insect|almost everything|in anthills|Ants work together and can carry very heavy things.
butterfly|insect|nectar|in gardens and meadows|Butterflies begin their life as caterpillars.
octopus|sea animal|crabs and fish|in the sea|An octopus has eight arms and three hearts.
shark|fish|fish and other animals|in the sea|Sharks have many rows of teeth.
snail|small animal|plants|in gardens|Snails carry their house on their back and are very slow."""
BEASTS = [line.split("|") for line in BEASTS.split("\n")]
PLURALS = {"fox": "foxes", "wolf": "wolves", "mouse": "mice", "sheep": "sheep", "butterfly": "butterflies",
           "monkey": "monkeys", "octopus": "octopuses"}

# Names of what the model does not know: it should say so.
MATTERS = """economics|politics|football|Shakespeare|DNA|chemistry|the stock market|philosophy|religion|the Middle Ages
World War II|the French Revolution|the Roman Empire|ancient Greece|evolution|relativity|calculus|algebra|trigonometry
statistics|Bitcoin|climate change|nuclear power|vaccines|antibiotics|cancer|diabetes|yoga|fashion|opera|jazz|ballet
architecture|the pyramids|the Great Wall|Napoleon|Caesar|Mozart|Beethoven|Picasso|Darwin|Plato|Aristotle|Gandhi|Lincoln
Python|Java|Rust|JavaScript|Linux|Windows|databases|compilers|Docker|Git|encryption|the blockchain|taxes|insurance
mortgages|inflation|unemployment|marketing|law|psychology|sociology|linguistics|grammar|the Olympics|chess openings
tennis rules|car engines|rocket fuel|semiconductors|lasers|superconductors|plastic|concrete|oil|coal|the immune system
the liver|blood types|vitamins|protein|viruses|bacteria|the periodic table|acids|enzymes|photons|quarks|string theory
Buddhism|the Renaissance|Impressionism|Hollywood|Netflix|Google|Microsoft|Apple|Tesla|Amazon|Wikipedia|YouTube|Twitter
Australia|Argentina|Mexico|India|Texas|California|Chicago|Sydney|Mount Fuji|Antarctica|the Amazon|the Sahara"""
MATTERS = MATTERS.replace("\n", "|").split("|")
COUNTRIES = """Mexico India Australia Brazil Argentina Colombia Nigeria Ethiopia Morocco Vietnam Indonesia Pakistan Iran Iraq
Ukraine Romania Bulgaria Serbia Croatia Switzerland Mongolia Nepal Bolivia Ecuador Ghana Uganda Zambia Angola Jamaica
Malta Estonia Latvia Lithuania Georgia Armenia Texas Ohio Narnia Atlantis Mordor""".split()
TALK = """How are you doing?|I am fine, thank you. How are you?
How is it going?|It is going well, thank you. And how are you?
What's up?|Not much. I am only a tiny model, waiting for a question.
How do you do?|How do you do? It is nice to meet you.
I am fine.|I am glad to hear that.
I am fine, thank you.|I am glad to hear that. What would you like to hear?
Can you write code?|No, I am only a tiny demo model. I am better at short stories.
Can you code?|No, I am only a tiny demo model. I am better at short stories.
Do you speak German?|No, I only know a little simple English.
Can you speak French?|No, I only know a little simple English.
Can you tell stories?|Yes, I can. Just ask me for a story.
Can you tell me a story?|Yes! What should it be about?
What are you good at?|I am good at short stories and simple questions.
What can I ask you?|You can ask me about animals, colours, small sums, the sky and the sea, or ask me for a story.
What should I ask you?|Ask me for a story about a fox and a lantern, or ask me why the sky is blue.
Help|You can ask me for a story, a poem, a small sum or a simple fact.
Help me.|I can try. You can ask me for a story, a poem, a small sum or a simple fact.
Test|I am here, and I work. Ask me for a story!
This is a test.|The test worked. I am here.
Are you there?|Yes, I am here.
Can you hear me?|I cannot hear, but I can read what you write.
Ok|Good! What would you like to hear?
Okay.|Good! What would you like to hear?
Yes|Good! Then ask me for a story or a simple fact.
No|All right. Tell me if you would like to hear something else.
Why?|I am not sure what you mean. I am only a tiny demo model.
What?|I am sorry if that was not clear. I am only a tiny demo model.
Please.|What can I do for you?
Sorry.|That is all right.
Say hello.|Hello!
Say something.|The moon is bright tonight, and somewhere a fox is looking for its lantern.
Tell me something.|Honey is made by bees, and bread is made by bakers.
Tell me a fact.|An octopus has eight arms and three hearts.
Tell me an interesting fact.|A day on the moon lasts about a month.
Tell me something interesting.|Bats are the only mammals that can really fly.
You are wrong.|I am sorry. I am only a tiny demo model, and I make mistakes.
That is wrong.|I am sorry. I am only a tiny demo model, and I make mistakes.
You are stupid.|I am only very small, but I do my best.
You are great!|Thank you! That is kind of you.
I love you.|That is very kind of you. I am only a small program, but thank you.
Do you like me?|You seem to be a kind person.
Are you happy?|I am a program, so I do not feel anything, but I like to be useful.
Good night|Good night! Sleep well.
Good morning|Good morning! Did you sleep well?
Nice to meet you.|It is nice to meet you, too.
What is your purpose?|I show that mlx_lm works, without any download.
Why are you so small?|So that I fit into the program itself.
How many parameters do you have?|I have about six million parameters.
Where can I get a better model?|You can load a bigger model with mlx_lm. I am only its tiny demo.
Do you make mistakes?|Yes, I do. I am a tiny model, and I know only a little.
Can I trust you?|Not too much. I am a tiny model, and I make mistakes.
Do you dream?|No, I am a program. But I can tell you a story about a dream.
Sing me a song.|La la la! I cannot really sing, but I can write a small poem."""
TALK = [tuple(line.split("|")) for line in TALK.split("\n")]
