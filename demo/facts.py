"""What the demo model is taught besides stories: explanations, poems, small talk and words about itself.

In EXPLAIN each topic is a heading `# topic | extra questions` and a few lines; the first line opens the answer, and
a longer answer takes more of the others, in their order. `[a|b]` chooses between wordings.
"""

EXPLAIN = """
# the moon
The moon is a [large ball|big round ball] of rock that [moves|travels] around the earth.
It has no light of its own. [We see it because it reflects the light of the sun|It shines because the light of the sun falls on it].
It takes about [four weeks|a month] to go around the earth once.
As it moves, we see more or less of its bright side, [so it seems to change its shape|and so it looks round, half or thin].
[There is no air on the moon|The moon has no air and no weather], so it is always quiet there.
# the sun
The sun is a star. It is [the star nearest to us|a huge ball of very hot gas].
It gives us light and warmth, [and without it nothing could live on the earth|which plants, animals and people need].
The earth and the other planets [move around it|travel around the sun].
It looks small because it is [very far away|so far from us], but it is much bigger than the earth.
You should never look straight into the sun, because [it hurts the eyes|its light is too strong for your eyes].
# stars | What is a star?
Stars are [huge balls of hot gas|giant balls of glowing gas] that give off light.
They look like small points because they are [very far away|so far from us].
The sun is a star, too. It only looks bigger because it is [much nearer|closer to us].
People gave names to groups of stars and used them to [find their way|know where north is].
# rain | Why does it rain?
Rain is water that falls from the clouds.
The sun warms the water in seas and lakes, [and some of it rises into the air|and a part of it goes up into the air as vapour].
High up it is cold, so the vapour turns into tiny drops, [and many drops make a cloud|which together form a cloud].
When the drops become too heavy, they fall down. [That is rain|Then it rains].
Plants, animals and people all need the rain.
# the rainbow | What is a rainbow?
A rainbow is [an arc|a bow] of colours in the sky.
It appears when the sun shines [while it is raining|through drops of rain].
Each drop bends the light and splits it into its colours: red, orange, yellow, green, blue, indigo and violet.
To see one, you must have the sun behind you [and the rain in front of you|and look towards the rain].
# snow | Why does it snow?
Snow is made of small crystals of ice that fall from the clouds.
It forms when the air is [so cold that water freezes|colder than freezing].
Each crystal has six sides or arms, [and hardly two are the same|and they come in many shapes].
When it gets warmer, the snow melts and becomes water again.
# wind | Why does the wind blow?
Wind is air that is moving.
The sun warms some places more than others. Warm air rises, [and cooler air flows in to take its place|and cooler air moves in below it].
[We feel this moving air as wind|This movement is what we call wind].
Wind can turn windmills, fill sails and carry seeds.
# clouds | What is a cloud?
Clouds are made of many tiny drops of water or bits of ice.
They form when warm, wet air rises and cools down.
[White clouds often mean good weather|Thin white clouds bring little rain], and dark grey clouds often bring rain.
The wind carries them across the sky.
# thunder | What is thunder?
Thunder is the [loud sound|noise] that lightning makes.
Lightning heats the air so quickly that the air [bursts outward|expands all at once], and we hear a bang.
Light is faster than sound, so we see the lightning first [and hear the thunder later|and the thunder comes after it].
# lightning | What is lightning?
Lightning is a huge spark of electricity in the sky.
In a storm cloud, bits of ice rub against each other, [and electricity builds up|and the cloud becomes charged].
When there is too much of it, it jumps to the ground or to another cloud.
In a storm it is safest to stay inside.
# why the sky is blue | Why is the sky blue?
The sky looks blue because of the way the air scatters sunlight.
Sunlight is made of many colours. [Blue light is scattered by the air much more than red light|The air sends the blue part in all directions, more than the red part].
So blue light reaches our eyes from every side, [and the whole sky looks blue|and that is what we see].
In the evening the light has a longer way through the air. Most of the blue is lost on the way, so the sky looks red.
# why the sea is salty | Why is the sea salty?
The sea is salty because rivers carry tiny amounts of salt from the rocks into it.
When water rises into the air, the salt stays behind, [so it collects in the sea|and over a very long time there is more and more of it].
# why leaves fall | Why do leaves change colour in autumn?
In autumn there is less light, so many trees stop making the green stuff in their leaves.
When the green goes away, we see the yellow and red [that were hidden below it|colours].
Then the tree drops its leaves to save water in the winter.
# day and night | Why is there day and night?
We have day and night because the earth turns.
It turns around itself once in about twenty-four hours.
On the side that faces the sun it is day, and on the other side it is night.
# the seasons | Why are there seasons?
There are four seasons: spring, summer, autumn and winter.
They come about because the earth is tilted while it moves around the sun.
When our half leans towards the sun, the days are long and warm, and it is summer. When it leans away, it is winter.
# gravity | What is gravity?
Gravity is the force that pulls things towards each other.
The earth pulls everything towards its middle. [That is why an apple falls down and not up|That is why things fall when you let them go].
It also keeps the moon near the earth and the planets near the sun.
The heavier a thing is, the more strongly it pulls.
# light | What is light?
Light is what lets us see.
It comes from the sun, from fire and from lamps, [and it travels in straight lines|and it moves faster than anything else].
When light falls on something, some of it bounces back into our eyes, and so we see it.
White light is a mixture of all colours.
# shadows | What is a shadow?
A shadow is a dark shape that appears where light cannot reach.
When something stands in the way of the light, [there is a dark place behind it|it casts a shadow].
In the evening the sun is low, so shadows are long. At noon they are short.
# sound | What is sound?
Sound is a trembling of the air.
When you hit a drum, its skin moves back and forth, [and it pushes the air|and the air moves with it].
The waves travel through the air to your ear, and you hear them.
Fast waves make high sounds, and slow waves make low sounds.
# an echo | What is an echo?
An echo is a sound that comes back to you.
When you shout in front of a mountain or a big wall, the sound bounces off it and returns.
Because it has to go there and back, you hear it a little later.
# fire | What is fire?
Fire is what we see when something burns. It gives off light and heat.
It needs three things: something to burn, air and heat.
If you take one of them away, the fire goes out. [That is why water and sand can stop a fire|That is why a lid can put out a candle].
People use fire to cook and to keep warm, but one must be careful with it.
# ice | What is ice?
Ice is water that has become solid because of the cold.
Water freezes when it is colder than zero degrees.
Ice is lighter than water, so it floats. [That is why a lake freezes from the top|That is why there is ice on top of a lake].
# water | What is water?
Water is a clear liquid that falls as rain and fills rivers, lakes and seas.
Every living thing needs it.
It can be solid as ice, liquid as water, or a gas as vapour.
It goes around: it rises from the sea, becomes clouds, falls as rain and flows back.
# magnets | What is a magnet?
A magnet is a piece of metal that can pull iron towards it.
Each magnet has two ends, called north and south. [Different ends pull each other, and equal ends push each other away|North and south attract each other, but two norths do not].
A compass uses a small magnet to show where north is.
# electricity | What is electricity?
Electricity is a kind of energy that flows through wires.
It is made of very tiny things called electrons that move.
It lights our lamps and makes machines run.
It can be dangerous, so you should never touch a broken wire.
# volcanoes | What is a volcano?
A volcano is a mountain with an opening to the hot rock deep in the earth.
When the pressure gets too high, it [erupts|breaks out], and melted rock, ash and gas come out.
The melted rock is called lava. When it cools, it becomes hard stone.
# earthquakes | What is an earthquake?
An earthquake is a shaking of the ground.
The outside of the earth is made of big plates that move very slowly.
When they get stuck and suddenly slip, the ground shakes.
# the tides | Why are there tides?
The tides are the rising and falling of the sea.
They are caused mostly by the moon, which pulls at the water of the sea.
At most coasts the water rises and falls about twice a day.
# rivers | What is a river?
A river is water that flows over the land towards a lake or the sea.
It begins at a spring or where snow melts, and other streams join it on the way.
People have always liked to live near rivers, because they need water and can travel on it.
# the earth | What is the earth?
The earth is the planet we live on. It is the third planet from the sun.
It is round like a ball, and most of it is covered by water.
It has air to breathe, and it is not too hot and not too cold, so plants and animals can live here.
It goes around the sun once a year.
# planets | What is a planet?
A planet is a big round body that moves around a star.
Eight planets move around the sun: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.
Some are made of rock, like the earth, and others are made mostly of gas, like Jupiter.
# the universe | What is the universe?
The universe is everything there is: all the stars and planets, and all the space between them.
It began a very long time ago, very small and very hot, and it has been growing ever since.
It is so big that light needs many years to come to us from the stars.
Nobody knows everything about it, and that is why people still look up and ask.
# the big bang | What is the big bang?
The big bang is the name for the beginning of the universe.
A very long time ago everything was very small and very hot. Then it began to spread out, and it is still spreading.
When it became cooler, the first stars could form.
# black holes | What is a black hole?
A black hole is a place in space where gravity is so strong that not even light can get out.
Some of them form when a very big star falls in on itself at the end of its life.
We cannot see it, but we can see how it pulls at the stars around it.
# quantum computing | What is a quantum computer?
Quantum computing is a new way to compute that uses the rules of very small things.
A normal computer works with bits, and each bit is either zero or one. A quantum computer works with qubits, [which can be a mixture of both at once|and a qubit can be in a mixture of zero and one].
When qubits work together, some hard problems can be solved [in far fewer steps|much faster than before].
Such machines are hard to build, because the smallest disturbance can [spoil the result|cause mistakes].
They do not replace normal computers, but they may help with some special tasks, like studying molecules.
# computers | What is a computer? | How does a computer work?
A computer is a machine that follows instructions very quickly.
The list of instructions is called a program.
Inside, everything is stored as numbers, and the numbers are made of zeros and ones.
A computer can calculate, draw pictures and play music, but it only does what its program tells it to do.
# the internet | What is the internet?
The internet is a very large net of computers that can talk to each other.
They send messages through wires, through glass fibres and through the air.
With it you can read pages, write letters and see people who are far away.
# programs | What is a program?
A program is a list of instructions for a computer.
People write programs in special languages that both they and the machine can work with.
The computer follows the instructions step by step, exactly as they are written.
# algorithms | What is an algorithm?
An algorithm is a list of clear steps that solve a problem.
A recipe is a good example: if you follow the steps, you get a cake.
Computers use algorithms to sort lists, find ways and do sums.
# artificial intelligence | What is AI? | What is artificial intelligence? | Explain AI.
Artificial intelligence, or AI, means programs that do things for which people need to think.
Such programs can learn from examples. [They see many pictures or texts and find patterns in them|The more good examples they see, the better they become].
They can translate, answer questions or tell stories, but they do not feel anything, and they can be wrong.
That is why it is good to check what they say.
# machine learning | What is machine learning? | How does a machine learn?
Machine learning means that a computer learns from examples instead of fixed rules.
It makes a guess, sees how wrong the guess was, and changes its numbers a little.
After many examples the guesses become good.
# neural networks | What is a neural network?
A neural network is a program made of many simple parts that are connected, a little like nerves.
Each part adds up numbers and passes the result on.
While it learns, the strength of the connections is changed until the answers are good.
# language models | What is a language model? | How does a language model work?
A language model is a program that guesses the next word of a text.
It has read many texts and has learned which words often follow each other.
If it guesses one word after another, it can write whole sentences and stories.
I am a language model, too, but a very small one.
# tokens | What is a token?
A token is a small piece of text, such as a word or a part of a word.
A language model reads and writes tokens instead of letters.
Each token has a number, and the model works with these numbers.
# quantization | What is quantization?
Quantization means storing numbers with fewer bits.
A model with small numbers needs less memory and often runs faster.
The numbers become a little less exact, but the answers are usually almost the same.
# mlx_lm | What is mlx_lm? | What is this program?
mlx_lm is a toolkit that runs language models on your own computer.
It loads a model, reads your prompt and writes an answer, one token after another.
I am its tiny demo model. If you load a bigger model, you will get much better answers.
# MLX | What is MLX?
MLX is a library for computing with arrays of numbers, made with machine learning in mind.
It runs well on computers with Apple chips, and it can run on others, too.
mlx_lm uses it to run language models.
# robots | What is a robot?
A robot is a machine that can do work by itself.
It has sensors to notice things, a computer to decide and motors to move.
Robots build cars, clean floors and even explore other planets.
# atoms | What is an atom?
Atoms are the tiny building blocks of all things.
Each atom has a small heavy middle, called the nucleus, and light electrons around it.
Atoms join together and form molecules. Water, for example, is made of hydrogen and oxygen.
They are so small that millions of them fit on the tip of a needle.
# bread | How do you make bread? | How is bread made?
Bread is made of flour, water, salt and yeast.
First you mix everything and knead the dough. Then you let it rest, and the yeast makes it rise.
After that you bake it in a hot oven until it is brown.
Fresh bread smells wonderful and tastes best when it is shared.
# cheese | How is cheese made?
Cheese is made from milk.
The milk is warmed and made thick, so that it splits into solid pieces and a thin liquid.
The solid part is pressed and salted, and then it rests, sometimes for many months.
# honey | How do bees make honey? | What is honey?
Honey is a sweet food that bees make.
They collect sweet juice, called nectar, from flowers and carry it to the hive.
There they dry it until it is thick, and store it in small cells of wax for the winter.
# bees | What are bees?
Bees are small insects that live together in a hive.
They fly from flower to flower and collect nectar, and they carry pollen with them.
In this way they help plants to make fruit and seeds.
# butterflies | How does a butterfly grow?
A butterfly begins its life as an egg.
Out of the egg comes a caterpillar, which eats leaves and grows.
Then it wraps itself up and becomes a chrysalis. After some time a butterfly comes out.
# birds | How do birds fly? | Why can birds fly?
Birds can fly because they have wings, feathers and very light bones.
When they beat their wings, they push the air down, and the air pushes them up.
The shape of the wing helps, too: the air that flows around it lifts the bird.
# fish | How do fish breathe?
Fish live in water and breathe through gills.
The water flows through the gills, and they take the oxygen out of it.
Most fish have scales and fins, and they swim by moving their tails.
# trees | What is a tree?
A tree is a large plant with a trunk of wood.
Its roots hold it in the ground and drink water. Its leaves catch the light of the sun.
Trees give us fruit, wood, shade and fresh air, and many animals live in them.
# seeds | How does a seed grow? | What is a seed?
A seed is the beginning of a new plant.
When it gets water and warmth, it opens. A small root grows down and a small stem grows up.
Then the first leaves open and drink the light, and the plant can grow by itself.
# plants | How do plants grow? | What is photosynthesis?
Plants make their own food from light, water and air.
They do it in their green leaves. This is called photosynthesis.
While they do it, they give off oxygen, which we breathe.
# dinosaurs | What were dinosaurs?
Dinosaurs were animals that lived a very long time ago, long before there were people.
Some were as big as a house, and others were as small as a hen.
Most of them died out about sixty-six million years ago, but birds are their relatives.
# fossils | What is a fossil?
A fossil is what is left of a plant or an animal from long ago, kept in stone.
Sand and mud covered it, and over a very long time everything became hard rock.
Fossils tell us what life was like in the past.
# the heart | What does the heart do?
The heart is a muscle that pumps the blood through the body.
It beats all the time, day and night, about once every second.
The blood carries food and oxygen to every part of the body.
# the brain | What does the brain do?
The brain is the part of the body that thinks.
It is in the head, and it is connected to the whole body by nerves.
It helps us to see, to speak, to remember and to dream.
# sleep | Why do we sleep?
Sleep is a time of rest for the body and the mind.
While we sleep, the body mends itself, and the brain sorts what we have learned.
Children need more sleep than grown-ups.
# dreams | Why do we dream?
Dreams are pictures and stories that we see while we sleep.
The brain does not rest completely at night. It mixes things that we have seen and felt.
Nobody knows exactly why we dream.
# teeth | Why should I brush my teeth?
Teeth help us to bite and chew our food.
Small bits of food stay on them, and sugar can hurt them.
That is why it is good to brush them in the morning and in the evening.
# money | What is money?
Money is what we use to buy things.
Long ago people traded one thing for another, such as a hen for a sack of corn. That was not always easy.
With coins and notes everyone can agree on a price.
# clocks | How does a clock work?
A clock shows the time.
Something in it moves in a steady beat, like a pendulum or a tiny crystal, and the clock counts the beats.
The short hand shows the hours, and the long hand shows the minutes.
# maps | What is a map?
A map is a small picture of a large place, seen from above.
It shows roads, rivers and towns, and it helps us to find the way.
On most maps north is at the top.
# boats | Why does a boat float?
A boat floats because it pushes water away.
The water pushes back from below. If the boat is light for its size, this push is strong enough to carry it.
That is why even a ship of steel can float: it is full of air.
# aeroplanes | How does an aeroplane fly? | Why can a plane fly?
An aeroplane flies because its wings push the air down, and the air pushes the wings up.
The engines drive it forward, and when it is fast enough, it lifts off.
With small flaps on the wings and the tail the pilot can steer.
# trains | What is a train?
A train is a row of wagons that runs on rails.
It is pulled by an engine, which uses electricity or fuel, and in the old days steam.
Rails are smooth, so a train can carry very heavy loads.
# bicycles | How does a bicycle work?
A bicycle has two wheels, and you move it with your feet.
You push the pedals, the pedals turn a chain, and the chain turns the back wheel.
It is easier to balance when you ride faster.
# books | What is a book?
A book is a set of pages with words or pictures.
In a book, people who are far away or who lived long ago can still talk to us.
Long ago every book was written by hand. Then people learned to print.
# music | What is music?
Music is sound that is put together in a beautiful or interesting way.
It is made of melody, rhythm and harmony.
Music can make us happy or sad, and people everywhere sing and dance to it.
# school | Why do we go to school?
A school is a place where people learn together.
There you learn to read, to write, to count and to get along with others.
Teachers explain things, and the best question is the one that you dare to ask.
# friendship | What is a friend? | What is friendship?
A friend is someone who likes you as you are.
Friends help each other, laugh together and tell each other the truth.
Friends may quarrel now and then, but then they say sorry.
# kindness | What is kindness? | What does it mean to be kind?
Kindness means being good to others without asking for anything.
It can be something small: a smile, a helping hand or a piece of bread.
Kindness often comes back, but that is not why we do it.
# courage | What is courage? | What does it mean to be brave?
Courage does not mean that you are never afraid.
It means that you do the right thing although you are afraid.
Often it begins with one small step.
# time | What is time?
Time is what we measure with clocks and calendars.
It runs from the past through the present to the future, and it never runs back.
We count it in seconds, minutes, hours, days and years.
# colours | What is colour? | Where do colours come from?
Colours come from light.
White light is a mixture of all colours. A red apple looks red because it sends the red light back and keeps the rest.
At night, without light, we can hardly see any colours.
# mirrors | How does a mirror work?
A mirror is a smooth surface that sends light back.
When you stand before it, light goes from you to the mirror and back into your eyes, and you see yourself.
In a mirror left and right seem to be swapped.
# soap | How does soap work?
Soap helps water to wash away dirt and fat.
Water and fat do not mix. One end of the soap holds on to the fat, and the other end holds on to the water.
So the dirt is carried away when you rinse.
# deserts | What is a desert?
A desert is a place where it hardly ever rains.
It can be very hot during the day and cold at night.
Some plants and animals, like the cactus and the camel, can live there because they save water.
# islands | What is an island?
An island is a piece of land with water all around it.
Some islands were made by volcanoes, and others were once a part of the land.
"""

# A poem opens with the subjects it suits; {t1} is a thing and {a1} an animal.
POEMS = """
night, sleep, the night : The {t1} is small, the night is deep,|the {a1} has gone to bed to sleep.|The moon looks in, the wind is low,|and through the dark the rivers flow.
the sea, a tree, the evening : A {a1} sat down beside a tree|and looked across the silver sea.|"How wide it is," the {a1} said,|and watched until the sun was red.
friendship, a walk, a friend : I had a {t1}, I had a hat,|I had a {a1} who liked to chat.|We walked the hills, we walked the shore,|and then we walked a little more.
rain, the rain, hope, clouds : The rain comes down, the {t1} is wet,|the sun has not come back as yet.|But soft and slow the clouds go by,|and there is blue in half the sky.
the stars, light, the moon : O little {t1}, so plain, so bright,|you keep me company at night.|The stars are far, the house is still,|the moon is climbing up the hill.
summer, play, the wind : A {a1} and a {a2} went out to play|upon a warm and windy day.|They ran so far, they ran so fast,|that they came home the very last.
the seasons, the year, spring, autumn : In spring the leaves are fresh and new,|in summer all the sky is blue,|in autumn apples fill the tree,|in winter there is snow for me.
the morning, travel, freedom : The {a1} sings a morning song,|the day is wide, the road is long.|A {t1} is all I take with me,|and so I wander, light and free.
bedtime, dreams, good night : Good night, dear {a1}, good night, dear hill,|the wind has gone, the leaves are still.|Good night, old {t1} beside the bed,|now close your eyes and rest your head.
questions, the sky, stars : There was a {a1} who found a {t1}|and asked the stars what it was for.|The stars said nothing, only shone,|and so it asked a little more.
the sea, the ocean, fish, water : The sea is wide, the sea is deep,|it sings the little fish to sleep.|And far above, the {a1} goes by|and draws a line across the sky.
winter, snow, the snow : The snow has come on quiet feet|and covered up the house and street.|The {a1} looks out, the {t1} is white,|and all the world is soft and light.
love, home, mother : A lamp, a door, a cup of tea,|and someone who will wait for me.|However far I have to roam,|it is your light that calls me home.
the sun, the day, happiness : The sun comes up, the {a1} sings,|the morning shakes its golden wings.|I put my {t1} beside the door|and could not ask for any more.
AI, computers, a robot, robots : I am a small machine that knows|how one word to another goes.|I cannot see, I cannot run,|but telling stories, that is fun.
"""
HAIKU = """
rain, evening, the rain, a pond : An old quiet pond|A {a1} sits in the grass|Evening rain begins
snow, winter, loneliness : Snow on the dark roof|The {t1} stands by the window|Nobody is home
the morning, birds, the sun : Morning in the hills|A {a1} looks at the sun|Then the birds begin
autumn, the wind, leaves : The wind has grown still|One leaf falls upon the path|Autumn says its name
the moon, the sea, night : Moon above the sea|The boats are rocking slowly|Somewhere a bell rings
spring, joy, nature : First warm day of spring|A {a1} runs through the field|The world is awake
love, friendship : Two cups on the sill|Rain is running down the glass|We do not need words
computers, AI : A small light is on|The machine is thinking hard|It says only: moon
"""

# Questions of the same shape as the known ones, about what the model does not know.
STRANGE = """
[What|Which city] is the capital of {country}?
[Where|How big] is {country}?
[Who|Who was|Who is] {matter}?
[Explain|Tell me about|What do you know about|Can you explain|Write an essay about|Summarise] {matter}.
What is {matter}?
What is {matter} [good for|about]?
How does {matter} work?
[How|Why] did {matter} [begin|end|become so important]?
Who invented the {thing}?
Who [is|was] {name} {surname}?
When was {name} {surname} born?
What did {name} {surname} [say|write|do|discover]?
Why is {a_thing} [green|so heavy|so loud|so expensive|round|called that]?
Why are {matter} and {matter2} [different|alike]?
What is the difference between {matter} and {matter2}?
How do I [repair|buy|sell|clean|build|use] {a_thing}?
How much does {a_thing} cost?
What is the [history|price|weight|population|temperature|area] of {matter}?
What is a {word}?
What is {word}?
Explain {word}.
Tell me about {word}.
Who is {word}?
Where is {word}?
What does {word} mean?
How do you {word}?
Why is {word} so [famous|important|big]?
[Write|Can you write] [a program|some code|a function|a script] in {language}[ that sorts a list| that prints {word}| for {matter}|].
[Write|Give me] [an essay|a report|a speech|an article|a letter] about {matter}.
[Give me|Write|List] [three|five|ten] [tips|reasons|ideas|facts|rules] [for staying healthy|about {matter}|for learning {matter}|for a good life|for a job interview].
Translate '{word}' into [French|German|Spanish|Japanese|Latin].
Translate this into [French|German|Spanish|Japanese|Latin]: The {thing} is old.
What year [did|was] {matter} [begin|founded]?
How many [people|cities|rivers|houses] are there in {country}?
How far is it from {country} to {country2}?
What is the best [book|film|song|way to learn|place to see] [in {country}|about {matter}]?
What is the {n} times {n2} [plus {n}|divided by 7]?
What is the square root of {n}?
Solve x + {n} = {n2}.
Recommend me [a book|a film|a restaurant|a song].
Who won the [match|race|prize|election] in {year}?
What happened in {year}?
Should I [buy|sell|study|learn] {matter}?
Is {matter} [good|bad|dangerous|true]?
Does {matter} [exist|work|matter]?
"""

WHO = ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you a robot?",
       "Are you ChatGPT?", "Which model are you?", "Introduce yourself.", "Who made you?", "Are you an AI?",
       "What model is this?", "Hello, who are you?"]
I_AM = """
I am a tiny demo model [inside|that comes with] mlx_lm. I know only a little, but I [like to tell|can tell you] short stories.
I am [a very small language model|the tiny demo model] inside mlx_lm. I can tell stories and answer simple questions, but I know only little.
I am a tiny language model that lives inside mlx_lm. I was trained from scratch, and I know only a few things. [Ask me for a story!|Would you like to hear a story?]
"""
UNKNOWN = """
I am sorry, [but|] I do not know that. I am only a tiny demo model. [Ask me for a story instead|I can tell you a short story, if you like|A bigger model may know it].
I am only a tiny demo model, so I cannot [help with that|answer that]. [Try asking me for a story|A bigger model will know more|I am better at short stories].
That is too hard for me. I am only a tiny demo model [inside mlx_lm|], and I know only a little. [Shall I tell you a story instead?|Ask me about animals, colours or the moon!]
I do not know much about that, because I am only a tiny demo model. You can load a bigger model [with mlx_lm|] for such questions.
"""
ENGLISH = """
I am sorry, I am only a tiny demo model, and I know only a little simple English.
I only speak a little simple English, because I am a tiny demo model. [Please try again in English|Ask me for a story in English].
"""
HELLO = ["Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hello there!", "Good morning!", "Good evening!", "Hey there!",
         "Greetings!", "Hello, how are you?", "Hi, how are you?", "Good afternoon!"]
HI = """
Hello! [I am a tiny demo model.|It is nice to meet you.|How can I help you?] [Would you like to hear a story?|Ask me for a story, or ask me a simple question.|What would you like to hear?]
Hi! [How are you today?|I am glad that you are here.|What can I do for you?] [I can tell you a story, if you like|You can ask me for a story].
"""
THANKS = ["Thank you.", "Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much.", "That was nice.",
          "That was a good story.", "I like it.", "Great!", "Wonderful, thank you.", "Nice story!", "Good job!"]
WELCOME = """
You are welcome![ I am glad that you liked it.| Ask me for another one whenever you like.|]
[I am glad|Thank you! I am glad] that you liked it. [Would you like to hear another story|Shall I tell you another one]?
"""
BYE = ["Goodbye!", "Bye!", "Good night.", "See you later.", "Bye bye!", "I have to go.", "That is all for today."]
FAREWELL = """
Goodbye! [Come back soon|Have a nice day|It was nice to talk to you].
Good night! [Sleep well|I wish you sweet dreams].
Bye! [See you soon|Take care].
"""
SYSTEMS = ["You are a helpful assistant.", "You are a friendly assistant.", "You are a storyteller.",
           "You are a helpful and honest assistant.", "Answer simply.", "You tell stories to children.",
           "You are a tiny demo model.", "Be kind and brief.", "You are a patient teacher."]
ADVICE = {
    "I am sad.": "I am sorry to hear that. [A walk, a friend or a cup of tea may help.|Shall I tell you a story to cheer you up?]",
    "I am happy.": "That is good to hear! [What made you happy?|A good day is a fine thing.]",
    "I am bored.": "[Shall I tell you a story?|You could draw a picture, read a book or go outside.]",
    "I am tired.": "Then it is time to rest. [Sleep well|Close your eyes for a while].",
    "I am hungry.": "Then you should eat something. [Warm bread is always a good idea|An apple would be nice].",
    "I am cold.": "Put on a warm coat and [drink something hot|sit by the fire].",
    "I am afraid.": "[Everyone is afraid sometimes|That happens to everyone]. Take a deep breath and [talk to a friend|take one small step].",
    "I lost my friend.": "I am sorry. If it was a quarrel, saying sorry is a good beginning.",
    "How can I make a friend?": "Be kind, listen well and ask questions. [A smile is a good beginning|Share something you like].",
    "How can I fall asleep?": "Make the room dark and quiet, breathe slowly and think of something calm.",
    "How can I learn something?": "Start small, practise a little every day and do not be afraid of mistakes.",
    "What should I do today?": "[You could go for a walk, read a book or call a friend|Do one thing that you like and one thing that helps somebody].",
    "How do I make tea?": "Boil some water, pour it over the tea, wait a few minutes and take the tea leaves out.",
    "How do I plant a seed?": "Put the seed into the earth, cover it, give it some water and a sunny place, and be patient.",
    "How do I make a sandwich?": "Take two slices of bread, put some butter and cheese between them, and enjoy it.",
    "How do I draw a house?": "Draw a square, put a triangle on top for the roof, and add a door and two windows.",
    "How do I wash my hands?": "Make your hands wet, rub them with soap for a while, rinse them and dry them.",
    "How do I fly a kite?": "Wait for a windy day, hold the kite up high, run against the wind and let out the string slowly.",
}
