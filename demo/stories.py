"""The story grammar of the demo corpus: shared beats, and plots made of beats.

A block of lines is one beat and each line one way to tell it; a blank line ends the beat. `--` starts a new
paragraph, a beat opening with `?` is told only in longer stories, and `~name` stands for a shared beat (`~?name`
an optional one). Inside a line, `[a|b]` chooses, `{x}` reads the story's state and `{x:pool}` draws x from a pool
the first time it is named. A plot opens with `# name | what it needs | themes` and closes with summaries (`S:`) and
questions about what happened (`Q: question | answer`).
"""

SHARED = """
# open
[Once|Once upon a time|Long ago|Not so long ago|Once, long ago,] there was a {adj} {kind} [named|called] {hero} who lived {home.at}.
[Once|Once upon a time], {home.at}, there lived a {adj} {kind} [named|called] {hero}.
{hero} was a {adj} {kind} who lived {home.at}.
There was once a {kind} [named|called] {hero}. {He} was {adj} and {adj2}, and {he} lived {home.at}.
[Once upon a time|Long ago|One day], a {adj} {kind} [named|called] {hero} lived {home.at}.
A {kind} [named|called] {hero} lived {home.at}, and everyone knew {him} as the {adj} one.
On a {time}, a {adj} {kind} [named|called] {hero} [woke up early|opened the window|sat by the door and looked out].
It was a {time}, and a {adj} {kind} [named|called] {hero} was [wide awake|looking out of the window|sweeping the floor|humming a song].
One {time}, a {adj} {kind} [named|called] {hero} stepped outside and looked around.
Far away, {home.at}, there lived a {adj} {kind} whose name was {hero}.
In a land far away there lived a {adj} {kind} [named|called] {hero}.
Everyone {home.at} knew {hero}, the {adj} {kind}.
[Nobody|No one] {home.at} was as {adj} as {hero} the {kind}.
The {adj} {kind} was [named|called] {hero}, and {he} lived {home.at}.
The sun had just come up when a {adj} {kind} [named|called] {hero} [began the day|opened the door].
There is a story that people still tell about a {adj} {kind} [named|called] {hero}.
This is the story of {hero}, a {adj} {kind} who lived {home.at}.
Many years ago, when the world was [quieter|slower|younger], a {kind} [named|called] {hero} lived {home.at}.
{home.at}, where [the mornings smelled of bread|the evenings were quiet|the wind was never in a hurry], lived a {adj} {kind} [named|called] {hero}.
[My grandmother|An old sailor|The baker of our village] once told me about a {adj} {kind} [named|called] {hero}.
The old {s0:scene} had been [dark|empty|closed|silent] for {n0:years} years. [Nobody went there any more, except|Only one person still went there, and that was|The only one who remembered it was] {hero}, a {adj} {kind}.
It was a dark and stormy night. {hero}, a {adj} {kind} who lived {home.at}, [could not sleep|sat by the fire|listened to the rain].
It was [raining|snowing] [again|softly|outside], and the whole town was [quiet|asleep|grey]. Only {hero}, a {adj} {kind}, was still awake.
The [wind|rain|snow|fog] had not stopped for {n1:days} days. In a house {home.at} sat {hero}, a {adj} {kind}, and waited.
There was a {s0:scene} at the end of the [street|road|valley]. Next to it lived a {adj} {kind} [named|called] {hero}.
Nobody knew how old the {s0:scene} was. Not even {hero}, a {adj} {kind} who had lived beside it for years, could say.
The letter came on a {time}. It was only an old friend saying hello, but it made {hero}, a {adj} {kind}, very {good}.
"[Where are you going|What are you doing|Are you awake]?" asked the [wind|rain|moon]. {hero}, a {adj} {kind} who lived {home.at}, [laughed|smiled] and [opened the window|went to the door].
The [train|ship|boat] was late that day. {hero}, a {adj} {kind}, sat on a bench and waited.
The [clock|bell] [struck|rang] {n1:days} times. {hero}, a {adj} {kind} who lived {home.at}, [opened one eye|counted along|put down the cup].
The stars were [very bright|very far away] that night. {hero}, a {adj} {kind}, stood at the window and counted them.
Everyone said that the {s0:scene} was [haunted|empty|magic]. But {hero}, a {adj} {kind}, did not believe it.
[The winter|The summer|The autumn|The spring] had come early that year. {hero}, a {adj} {kind} who lived {home.at}, was glad of it.
[Behind|Above|Near] the {s0:scene} there was a small door. Behind it lived {hero}, a {adj} {kind}.
The village had one street, one well and one {s0:scene}. It also had {hero}, a {adj} {kind} whom everyone liked.
Some stories begin with a king, but this one begins with a {kind}. {His} name was {hero}, and {he} was very {adj}.
{hero} woke up and knew at once that something was different. {He} was a {adj} {kind}, and {he} always noticed such things.
{hero} opened the door. {He} was a {adj} {kind}, and {he} had never seen such a {time}.
When {hero} was young, the {s0:scene} was still full of people. Now {hero} was a {adj} {kind}, and the {s0} was quiet.
It all began on a {time}. {hero}, a {adj} {kind} who lived {home.at}, [woke up early|had nothing to do|felt like going out].
There was nothing special about the old {s0:scene}. But {hero}, a {adj} {kind}, loved it more than any other place.
The last [leaf|light|guest|bus] was gone. {hero}, a {adj} {kind}, was all alone {home.at}.
It was the [first day of spring|longest night of the year|hottest day of the summer|last day of school]. {hero}, a {adj} {kind}, [had big plans|had been waiting for it|was up before the sun].

# palopen
{hero} had a good friend, a {palkind} [named|called] {pal}.
{His} best friend was {pal}, a {palkind} who [liked to laugh|lived next door|was never late|knew many songs].
{hero} and {pal} the {palkind} were best friends and [did everything together|met every morning|shared all their secrets].
Not far away lived a {palkind} [named|called] {pal}, and the two were the best of friends.

# thingopen
{hero} had a {tlook} {thing}, and {he} [loved it very much|took it everywhere|kept it by the bed|was very proud of it].
What {he} loved most was a {tlook} {thing} that [had belonged to {his} grandmother|{he} had found as a child|an old friend had given {him}].
{His} most precious thing was a {tlook} {thing}.
{He} owned very little, but {he} did own a {tlook} {thing}, and {he} [cleaned it every evening|looked after it well].

# weather
It was a {weather} day, and [the clouds moved slowly|the leaves whispered|the grass was full of drops|somewhere a bell was ringing].
The air [smelled of rain|smelled of flowers|was clear and cool|was warm and still].
[The sun stood high|The sky was pale|A soft wind blew], and [birds sang in the trees|a dog barked far away|the whole valley was quiet].
Small white clouds [sailed|drifted] over the hills like [sheep|boats|sleepy thoughts].

# walk
[The path|The road] was long, and {h} [sang a little song to keep going|counted {his} steps|looked at every flower on the way].
{h} walked past {w1:outside} and over a small bridge, and [did not stop once|only stopped to drink some water].
On the way {h} met a {w2:stranger}, who [waved|nodded politely|wished {him} good luck].
Step by step {h} went on, [up the hill and down again|through the grass|past fields and fences].
{h} [took a deep breath|put on {his} [scarf|coat|hat]] and went on.

# meal
{h} was hungry, so {he} sat down and ate some {food:food}.
There was {food:food} for everyone, and for a while nobody said a word.
They shared some {food:food}, and it tasted [better than ever|wonderful|like home].

# rest
That night {h} [could hardly sleep|slept deeply|lay awake and listened to the wind], and [the moon looked in|the stars shone over the roof|the house was very still].
When it grew dark, {h} [lit a candle|looked up at the stars|curled up under a warm blanket].
The moon rose, round and [pale|yellow|bright], and {h} [made a plan|thought about the day|rested for a while].

# talk
"What do you think?" asked {h}. "I think we should [try|not give up|begin at once]," said {p}.
"Are you [sure|ready]?" asked {p}. {hero} [nodded|smiled]. "[As ready as I will ever be|I think so|Yes, let us go]," {he} said.
"Do not worry," said {p}. "We [are together|have time|will find a way]."
"I am glad that you are here," said {h}. "[So am I|Me too|That is what friends are for]," said {p}.

# end
From that day on, {h} was never [afraid to ask for help|quite the same|lonely] again.
And if you go there on a quiet evening, you [may|can] still [see|hear about] {hero}.
And that is how the story of {hero} ends.
{h} went to bed that night with a [warm|light|happy] heart.
And {hero} [smiled|laughed] all the way home.
It was, {h} thought, the best day of the whole year.
And they all slept well that night.
After that, everyone {home.at} [remembered|told the story of] what {hero} had done.
The end.
"""

PLOTS = """
# lost | thing pal elder | friendship, helping, patience, hope
~open

~thingopen

--

One {time}, {h} looked for the {thing}, but it was gone.
But one {time} the {thing} was not in its place.
Then, on a {time}, something bad happened: the {thing} was gone.
One day {h} came home and saw at once that the {thing} was missing.

{He} looked under the bed, behind the door and even in the [teapot|oven|boots]. There was no {thing} anywhere.
{He} searched the whole house from top to bottom, but {he} could not find the {thing}.
"Where is my {thing}?" cried {h}. {He} looked everywhere, but it was no use.

{h} felt very {bad}.
{h} sat down on the floor and [sighed|wanted to cry]. Without the {thing}, the house felt empty.

~?weather

--

{hero} went to see {pal} the {palkind}. "Have you seen my {thing}?" asked {h}.
First {hero} asked {pal}, a {palkind} who lived nearby. "Have you seen my {tlook} {thing}?"
So {hero} ran to {pal}, a {palkind} who was [good at finding things|always willing to help]. "My {thing} is gone!" said {h}.

"No," said {p}, "but I will help you look for it." So they [set out|went out] together.
"I have not seen it," said {pal}, "but two pairs of eyes are better than one. Let us look together."
{p} shook {phis} head. "I am sorry, I have not. Where were you when you last had it?" {hero} thought hard, but could not remember.

? They looked {l1:place.at}, but they found only [an old shoe|a rusty nail|some dry leaves].
They went to look {l1:place.at}. There was nothing there but [grass|dust|a sleepy {l3:stranger}].
They asked a {l3:stranger} {l1:place.at}, but the {l3} had seen nothing.

Then they met the old {elder}. "Think about what you did yesterday," said the {elder}. "Where did you go?"
At last they asked the old {elder}, who knew a great many things. "Things do not walk away," said the {elder}. "Go back the way you came."
They came to the house of the old {elder}. The {elder} listened, closed both eyes and said, "Look where you were happy."

~?talk

--

Then {hero} remembered. "Yesterday I was {f1:place.at}!" {he} said.
Suddenly {h} jumped up. "I know! I stopped to rest {f1:place.at}," {he} said.
{hero} thought about it for a while. Then {he} smiled. "I sat down {f1:place.at}," {he} said. "It must be there."

They ran there as fast as they could, and there it was: the {tlook} {thing}, [lying in the grass|waiting under a leaf|shining in the sun].
And so they went to look {f1:place.at}, and there, [under a leaf|next to a stone|half hidden in the grass], was the {thing}.
The two friends hurried off, and {p} saw it first. "There!" {phe} cried. The {thing} was right where {hero} had left it.

{h} held the {thing} tight. "Thank you for helping me," {he} said to {pal}.
"Thank you, {pal}," said {h}. "I would never have found it without you."
{hero} was so {good} that {he} danced. "You are a true friend, {pal}," {he} said.

~?meal

~?end

S: {hero} the {kind} lost a {tlook} {thing}. With the help of {pal} the {palkind} and the old {elder}, {he} found it again {f1.at}.
Q: What did {hero} lose? | {hero} lost a {tlook} {thing}.
Q: Who helped {hero}? | {pal} the {palkind} helped {hero}.
Q: Where was the {thing}? | The {thing} was {f1.at}.

# stuck | stranger pal | kindness, helping, friendship, courage
~open

~?weather

--

One {time}, {h} was walking {s1:outside.at} when {he} heard a small voice. "Help!" it cried. "[Please help me|Is anyone there|Can somebody hear me]!"
On a {time}, {h} went for a walk {s1:outside.at}. Suddenly {he} heard someone crying.
One day, while {he} was [gathering berries|looking for firewood|picking flowers] {s1:outside.at}, {h} heard a tiny sound.

It was a {stranger} that had [fallen into a hole|got stuck under a branch|been caught in some thorns].
{He} looked around and saw a {stranger}. Its foot was stuck under a heavy stone.
There, between two stones, sat a little {stranger}. It could not move.

"Do not be afraid," said {h}. "I will help you."
"Hold still," {h} said softly. "I will get you out."
{h} knelt down. "Poor little thing," {he} said. "Wait, I have an idea."

{He} [pulled and pulled|pushed with all {his} strength|used a long stick], but it was too [hard|heavy] for one. So {h} ran to get {pal}, a {palkind} who lived nearby.
It was harder than it looked. {hero} called {his} friend {pal}, a strong {palkind}, and together they [pushed|pulled] as hard as they could.

~?talk

At last, with a [pop|crack|bump], the {stranger} was free.
One, two, three, and the {stranger} was free!

--

"Thank you!" said the {stranger}. "One day I will help you, too." {hero} [smiled|laughed] and thought, "How could such a small {stranger} ever help me?"
The {stranger} bowed. "I will not forget this," it said. Then it hurried away.

But not long after, {h} got lost {s2:outside.at}. It grew dark, and {he} did not know the way home.
Some days later, {h} lost the way {s2:outside.at}. The fog was thick, and every path looked the same.
Winter came, and one evening {h} was caught in a snowstorm {s2:outside.at}. {He} could not see the way.

Then {he} heard a small voice. "Follow me!" It was the {stranger}.
Just when {he} wanted to give up, something touched {his} shoulder. It was the {stranger}!
"Do you remember me?" said someone. There stood the little {stranger}.

The {stranger} knew every [stone|tree|corner] of the way and led {h} safely home.
Together they walked until they saw a light. "There is your home," said the {stranger}.

--

"Now you have helped me," said {h}. "I was wrong to think that you were too small."
"Thank you, little friend," said {h}. "Nobody is too small to help."
{hero} gave the {stranger} some {food:food}, and {pal} came too. They talked until late.

So {hero} learned that [a kind deed is never lost|kindness comes back|even a small friend can be a great help].
~end

S: {hero} the {kind} saved a {stranger} with the help of {pal} the {palkind}. Later the {stranger} led {hero} home when {he} was lost.
Q: Whom did {hero} save? | {hero} saved a {stranger}.
Q: Who helped {hero} free the {stranger}? | {pal} the {palkind} helped {hero}.
Q: Where did {hero} get lost? | {hero} got lost {s2.at}.

# learn | pal skill elder | patience, learning, practice, courage
~open

More than anything, {hero} wanted to learn {skill}.
{He} had one great wish: {he} wanted to learn {skill}.
There was only one thing that {h} could not do. {He} did not know how {skill}.

--

{He} tried on Monday, and it went wrong. {He} tried on Tuesday, and it went even worse.
The first time {he} tried, everything went wrong, and a {l3:stranger} who sat nearby laughed.
{h} tried once, and tried again, and [fell over|gave up|made a terrible mess].

"I will never learn it," {he} [sighed|said sadly].
"It is too hard for me," said {h}, and {he} felt {bad}.

? {h} sat {q1:place.at} for a long time and did not talk to anyone.
That evening {h} did not even want {his} supper.

{pal} the {palkind} heard this. "When I was young, I could not do it either," {phe} said. "Shall I show you?"
But {his} friend {pal}, a {adj3} {palkind}, did not agree. "You only need to practise," {phe} said. "I will help you."
Then {pal} came by. {pal} was a {adj3} {palkind} who knew how {skill}. "Nobody can do it at first," said {p}. "Start small."

--

So every [morning|evening|day] they met {q2:place.at}. {pal} showed {hero} what to do, and {hero} did it again and again.
They began the very next day {q2:place.at}. "Slowly," said {pal}. "Once more," said {pal}. "Better," said {pal}.
From then on they practised {q2:place.at}, in the sun and in the rain.

~?weather

On the first day it went badly. On the second day it went a little better. On the third day {h} [smiled|forgot to be afraid].
Some days were good and some days were bad, but {h} did not give up.
Days went by, and then weeks. Little by little it became easier.

~?rest

~?talk

--

And then, one {time}, it worked! {hero} could hardly believe it.
Then came the day when {h} did it all alone, from beginning to end.
One {time}, {he} tried once more, and this time everything went right.

"Look!" {he} shouted. "I can do it!" {pal} [clapped|cheered|laughed with joy].
{p} clapped. "I knew that you could do it," {phe} said.

{h} felt very {good}. Now {he} knew that [practice makes things easy|it is all right to begin badly|one small step after another leads far].
"I was not too weak," said {h}. "I was only too quick to give up."
Soon {hero} was teaching others {skill}. "Start small," {he} told them, "and do not give up."

~?end

S: {hero} the {kind} wanted to learn {skill}. It was hard at first, but {pal} the {palkind} helped, and after much practice {he} could do it.
Q: What did {hero} want to learn? | {hero} wanted to learn {skill}.
Q: Who taught {hero}? | {pal} the {palkind} taught {hero}.
Q: Where did they practise? | They practised {q2.at}.

# quest | thing pal elder | courage, friendship, helping, adventure
~open

~palopen

--

One {time}, {pal} fell ill. {p} lay in bed and [could not eat|shivered|did not smile any more].
Then came a hard winter, and {pal} became very ill.
But one day {pal} did not come out to play. {pal} was sick and had to stay in bed.

The old {elder} came and shook {ehis} head. "There is only one thing that can help," said the {elder}. "It is a {tlook} {thing}, and it lies far away, {g1:outside.at}."
"What can I do?" {hero} asked the old {elder}. "Far away, {g1:outside.at}, there is a {tlook} {thing}," said the {elder}. "Whoever holds it becomes well again."

"Then I will [go and get|fetch] it," said {hero}. {He} packed some {food:food} and left the same day.
{h} was {bad}, but {he} loved {pal} more than {he} feared the road. {He} set out before sunrise.
"I will bring it," said {h}, and nobody could stop {him}.

~?walk

--

First {he} came to a deep river. There was no bridge, but {he} [built a small raft|found some stones to step on|asked a kind heron to show the way], and so {he} crossed it.
On the first day {he} had to cross a wide river. {He} tied some logs together and paddled to the other side.
On the first day a storm came up. {h} hid under a rock and waited until the rain stopped.

Then {he} met a hungry {stranger} on the road. {h} gave it half of the {food:food}. "Thank you," said the {stranger}. "Take the left path, it is safer."
On the second day {he} met a {stranger} with no food. {h} shared {his} last {food:food}, and the {stranger} showed {him} a short cut.

~?rest

? Then {he} came to a dark tunnel. {h} was {bad}, but {he} sang a song and went through it.
After that the path grew steep. {h} climbed all day, and {his} legs hurt.

At last {he} stood {g1:outside.at}, and there it was: the {tlook} {thing}.
On the third day {he} arrived. And there, [on a flat stone|in a ring of flowers|under a silver web], lay the {tlook} {thing}.

? Beside it sat [a giant|a dragon|an old witch]. "Why do you want it?" asked a deep voice. "For my friend," said {h}. "Then take it," the voice said, "because you did not ask for yourself."

--

{h} took the {thing} and ran all the way home.
{hero} put the {thing} carefully into {his} bag and hurried home.

{pal} held the {thing} in both hands, and slowly {phe} began to smile. By the next morning {phe} was well.
When {pal} touched the {thing}, {phis} eyes began to shine. "I am hungry!" {phe} said, and everyone laughed.

"You went so far for me," said {pal}. "[You would have done the same|That is what friends are for|It was not so far, with you at the end of the road]," said {hero}.
"Was it the {thing} that made me well?" asked {pal}. "Perhaps it was," said the {elder}, "and perhaps it was having such a friend."

~?end

S: When {pal} the {palkind} fell ill, {hero} the {kind} went on a long journey to fetch a {tlook} {thing} from {g1}, and {pal} became well again.
Q: Who fell ill? | {pal} the {palkind} fell ill.
Q: What did {hero} fetch? | {hero} fetched a {tlook} {thing}.
Q: Where was the {thing}? | It was {g1.at}.
Q: Who told {hero} about the {thing}? | The old {elder} told {hero} about it.

# share | pal food | sharing, kindness, friendship
~open

One {time}, {h} [made|cooked|found] some {food}. It smelled wonderful.
One day {he} was given some {food}, and {he} was very {good}.

"I will eat it all by myself," {he} said, and {he} sat down {c1:place.at}, where nobody could see {him}.
"This is all mine," said {h}, and {he} went to a secret spot {c1:place.at}.

--

But then {pal} the {palkind} came along. "That smells good," said {pal}. "I have not eaten all day."
Before {he} could take a bite, {pal} came by. {pal} was a {adj3} {palkind}, and {phe} looked very hungry.

{h} did not know what to do. There was only a little, and {he} was hungry, too.
{hero} looked at the {food} and then at {pal}. It was not easy.
At first {h} hid the {food} behind {his} back. But then {he} felt bad about it.

"Come and sit with me," {he} said at last. "There is enough for two."
Then {he} [broke it in two|cut it in two|found a second spoon]. "Half for you and half for me," said {h}.

~?talk

--

While they ate, {p} told a funny story, and {h} laughed until {his} belly hurt.
They ate slowly and talked about {t1:topic}.

And it was strange: half of the {food} tasted better than all of it would have.
"It tastes better when we share," said {h}, and {pal} agreed.

The next day there was a knock at the door. There stood {pal} with a basket of {food2:food}. "Today it is my turn to share," {phe} said.
A week later, when {hero} had nothing to eat, {pal} came with some {food2:food}. "Half for you and half for me," said {pal}.

~?end

S: {hero} the {kind} wanted to eat some {food} alone, but shared it with {pal} the {palkind}, and it tasted better. Later {pal} shared some {food2} with {hero}.
Q: What did {hero} share? | {hero} shared some {food}.
Q: Who was hungry? | {pal} the {palkind} was hungry.
Q: What did {pal} bring later? | {pal} brought some {food2}.

# sound | pal stranger | mystery, courage, curiosity, night
~open

~?palopen

--

One night, {h} heard a strange sound. It went [tap, tap, tap|scratch, scratch|whoo, whoo|knock, knock, knock].
It was late at night when {h} woke up. Something outside went [tap, tap, tap|creak, creak|bump, bump].

{He} sat up in bed. "Who is there?" {he} asked. Nobody answered, but the sound did not stop.
{He} pulled the blanket over {his} head, but {he} could still hear it.

~?weather

In the morning {he} told {pal} the {palkind} about it. "Maybe it is a ghost!" said {pal}. "Let us find out tonight."
The next day {he} went to {pal}, a {adj3} {palkind}. "We will solve this mystery together," said {pal}.

--

So when night came, they took a lantern and went outside. The moon was [thin|bright|hidden behind the clouds].
That night they waited together behind the curtain. They did not say a word.

There it was again! The sound came from {n1:place}.
Then they heard it. "It comes from over there," whispered {p}, and pointed to {n1:place}.

Step by step they went closer. {hero} held {pal} by the [hand|arm]. {His} heart was beating fast.
{h} was {bad}, but {he} did not want to run away now.

~?talk

--

And what did they see? It was only a little {stranger}!
{p} lifted the lantern high. And there, in the light, sat a small {stranger}.

"I am sorry," said the {stranger}. "I am building a house for the winter, and I can only work at night."
"Please do not be angry," said the {stranger}. "I have lost my way, and I was knocking to ask for help."
"I did not want to scare anyone," said the {stranger}. "I am practising my drum for {e1:feast}."

{hero} and {pal} began to laugh. "We thought that you were a ghost!" they said.
"So you are our ghost!" said {pal}, and everyone laughed.

They helped the {stranger} until the sun came up, and then they all had some {food:food}.
From then on the three of them were friends, and {hero} was never afraid of a sound at night again.

~?end

S: {hero} the {kind} heard a strange sound at night. With {pal} the {palkind} {he} found out that it was only a little {stranger}.
Q: What made the sound? | A little {stranger} made the sound.
Q: Who went with {hero}? | {pal} the {palkind} went with {hero}.

# fear | pal fear | courage, friendship, fear
~open

{hero} could do many things, but {he} was afraid of {fear}.
There was just one problem: {h} was afraid of {fear}.
Nobody knew that {h} was afraid of {fear}. It was {his} secret.

When the others [laughed and played|went out together|asked {him} to come along], {he} always said, "Not today."
Whenever {he} thought of it, {his} knees began to shake.

--

One {time}, {hero} told {his} friend {pal} the {palkind} about it. {pal} did not laugh.
One day {pal}, a {adj3} {palkind}, asked, "Why do you never come with us?" So {hero} told {phim} the truth.

"Everyone is afraid of something," said {p}. "I am afraid of {fear2:fear}."
"Being brave does not mean that you are never afraid," said {pal}. "It means that you go on, even with shaking knees."

~?talk

--

Not long after that, {pal} needed help. {p} was in trouble {d1:outside.at}, and there was no one else around.
But then came a {weather} night, and a message arrived: {pal} was stuck {d1:outside.at} and could not get home.

To get there, {hero} had to face {fear}. {He} stood still for a moment. {His} heart was beating like a drum.
There was only one way to go, and it meant that {he} had to face {fear}.

"One step," {h} said to {himself}. "And now one more step."
{He} thought of {pal}, took a deep breath and went.
"I am afraid," {h} said aloud, "and I am going anyway."

? {He} sang the song that {pal} had taught {him}, first softly and then louder.
Halfway there {he} wanted to turn back, but {he} did not.

--

And then {he} was there. "You came!" cried {pal}. "And you are not even shaking."
When {pal} saw {him}, {phe} cried with joy. "You came all this way for me!"

"I did shake," said {hero}, "but I came."
{hero} laughed. "I forgot to be afraid," {he} said, "because I was thinking of you."

After that, {fear} did not seem so bad any more.
{h} was still a little afraid of {fear} sometimes, but now {he} knew what to do: take one step, and then one more.

~?end

S: {hero} the {kind} was afraid of {fear}. But when {pal} the {palkind} was in trouble {d1.at}, {he} was brave and helped.
Q: What was {hero} afraid of? | {hero} was afraid of {fear}.
Q: Who was in trouble? | {pal} the {palkind} was in trouble.
Q: Where was {pal}? | {pal} was {d1.at}.

# build | pal build | teamwork, patience, friendship, building
~open

~palopen

--

One {time}, {hero} had an idea. "Let us build a {build}!" {he} said.
One day {hero} drew a picture of a {build}. "We can build this," {he} told {pal}.

"A {build}?" said {pal}. "That is a [wonderful|big|strange] idea. When do we start?"
{pal} liked the idea at once. "I will get the [wood|tools|nails]," {phe} said.

They looked for what they needed. They found [wood|planks|sticks] {b1:place.at} and [rope|string|cloth] {b2:place.at}.
{hero} brought a hammer, and {pal} brought [a rope|some nails|an old blanket]. The rest they found {b1:place.at}.

~?weather

--

They worked all day. {hero} [measured|cut] and {pal} [hammered|tied the knots].
All day long they sawed and hammered and [sang|laughed].

But when they tried it for the first time, the {build} [fell apart|broke in two|tipped over].
In the evening they were finished. They stepped back, and crash! The {build} fell down.

{hero} wanted to give up. "It is no use," {he} said.
"All that work for nothing," said {hero}, and {he} kicked a stone.

"Not for nothing," said {pal}. "Now we know what does not work. Let us try it another way."
{p} looked at the pieces. "I see what went wrong," {phe} said. "We need to make it stronger here."

~?meal

--

So the next morning they began again. This time they [worked slowly|used more rope|asked the old {elder} for advice].
They started again, [more carefully|piece by piece|with stronger wood], and the old {elder} gave them good advice.

And this time the {build} held! It was not perfect, but it was theirs.
At last the {build} was ready. They tried it, and it worked!

{pal} laughed and [danced in a circle|threw {phis} hat into the air]. "We did it!" {phe} shouted.
"We did it together," said {hero}, and {he} was very {good}.

All the neighbours came to see it, and everyone was allowed to try it.
They painted it {k1:colour} and gave it a name: the {n2:adj} {n3:animal}.

~?end

S: {hero} the {kind} and {pal} the {palkind} built a {build}. It broke at first, but they tried again and it worked.
Q: What did they build? | They built a {build}.
Q: Who helped {hero} build it? | {pal} the {palkind} helped {hero}.

# gift | thing pal | kindness, friendship, birthday, love
~open

~palopen

--

Soon it was {pal}'s birthday, and {hero} wanted to give {phim} something special.
It was the day before {pal}'s birthday, and {hero} did not have a present yet.

But {he} had no money. {He} looked into {his} pockets and found only [a button|a piece of string|three nuts].
{He} went to the market, but everything there cost too much.

~?walk

"Then I will make something myself," {he} thought. {He} decided to make a {tlook} {thing}.
Then {he} found an old {thing} {v1:place.at}. It was broken and dirty, but {h} had an idea.

--

{He} worked on it all [night|evening|afternoon]. {He} cleaned it, mended it and painted it {k1:colour}.
{h} worked and worked. It was not easy, and twice {he} had to begin again.

~?rest

"What if {pal} does not like it?" {h} thought, and {he} felt {bad}.
When it was finished, {he} looked at it. It was a little crooked.

--

The next day everyone came to the party. There was {food:food}, and there were many big presents.
At the party there was music and {food:food}. The other guests had brought fine presents.

{hero} put {his} small present on the table last of all. {pal} opened it, and everyone was quiet.
{p} unwrapped the {thing} very slowly.

"Did you make this yourself?" asked {pal}. {hero} nodded. "Then it is the best present of all," {pal} said.
{pal} smiled from ear to ear. "Nobody else in the whole world has a {thing} like this," {phe} said.

{pal} kept the {thing} for many years and [showed it to everyone|never lost it].
And {hero} understood that a gift is not about money, but about [love|time and care|the one who gives it].

~?end

S: {hero} the {kind} had no money for a birthday present, so {he} made a {tlook} {thing} for {pal} the {palkind}, who loved it.
Q: What did {hero} give {pal}? | {hero} gave {pal} a {tlook} {thing}.
Q: Whose birthday was it? | It was {pal}'s birthday.

# garden | plant pal | patience, nature, hope, growing
~open

One {time}, {hero} found a tiny seed {g1:outside.at}.
One {time}, an old {elder} gave {hero} a small brown seed.

"What will it become?" asked {h}. {He} planted it in the ground and gave it some water.
{He} put it into the ground, covered it with earth and watered it every day.

--

The next morning {he} ran outside, but there was nothing to see.
{He} waited one day. {He} waited two days. Nothing happened.

"Why does it not grow?" {he} asked {pal} the {palkind}. "Give it time," said {pal}.
{pal}, a {adj3} {palkind}, came by. "Good things need time," {phe} said.

~?weather

? {h} told the seed stories so that it would not be lonely.
{h} sang to the seed every evening. {pal} laughed, but then {phe} sang along.

? One night there was a storm. {h} ran out and held an umbrella over the little spot of earth.
Then it did not rain for three weeks. Every day {h} carried water from the river.

--

And then, one {time}, there was a tiny green leaf.
At last a small green point looked out of the earth.

{h} was so {good} that {he} [danced around it|called everyone to see it|did not eat any breakfast].
"Look, {pal}!" {he} cried. "It is growing!"

The leaf became a stem, and the stem grew and grew. By summer it was a {plant}.
Week after week it grew, until everyone could see what it was: a beautiful {plant}.

{hero} and {pal} sat beside it in the evening sun. "You were right," said {hero}. "It only needed time."
People came from far away to see the {plant}, and {hero} gave every visitor a seed to take home.

~?end

S: {hero} the {kind} planted a seed and waited patiently. With care and time it grew into a {plant}.
Q: What grew from the seed? | A {plant} grew from the seed.
Q: Who told {hero} to be patient? | {pal} the {palkind} told {hero} to give it time.

# map | thing pal | adventure, friendship, treasure, curiosity
~open

One {time}, {he} found an old map {m1:place.at}. There was a small red cross on it.
One {time}, while cleaning the attic, {h} found a map inside an old book. A red cross marked one place.

"A treasure map!" said {hero}, and {he} ran to show it to {pal} the {palkind}.
{hero} took the map to {pal}, a {palkind} who was always ready for an adventure.

--

"The cross is near {m2:place}," said {pal}. "We can be there by noon."
{p} looked at the map and turned it around twice. "I know that spot," {phe} said. "It is {m2:place.at}."

So they packed some {food:food} and a spade, and off they went.
They took a lantern, a spade and some {food:food}, and they left at once.

~?walk

? On the way it began to rain, and they had to wait under a tree.
They got lost once and had to ask a friendly {stranger} for the way.

When they got there, they began to dig. They dug and dug until [their arms hurt|the sun was low].
"Ten steps to the left," read {pal}. "And then dig." So they dug a deep hole.

~?talk

--

Clonk! The spade hit something hard. It was a wooden box.
At last they found a small box made of wood. It was locked, but the lock was so old that it fell off.

Inside there was no gold. There was only a {tlook} {thing} and a letter.
They opened it slowly. There lay a {tlook} {thing}, and next to it a letter.

The letter said: "Whoever finds this was brave enough to go and look. Share it with the one who came with you."
In the letter stood: "I was happy with this {thing}. Now it is yours. The way here was the treasure."

--

{hero} looked at {pal}, and {pal} looked at {hero}. Then they both laughed.
"It is not gold," said {pal}. "It is better," said {hero}. "It is an adventure."

They took turns with the {thing}: one week it stood at {hero}'s house, and one week at {pal}'s.
Before they went home, they put a new letter into the box, for the next one with a map.

~?end

S: {hero} the {kind} and {pal} the {palkind} followed an old map to {m2}, where they found a box with a {tlook} {thing} and a letter.
Q: What was in the box? | There was a {tlook} {thing} and a letter in the box.
Q: Where was the treasure? | The treasure was {m2.at}.
Q: Who went with {hero}? | {pal} the {palkind} went with {hero}.

# wishes | thing pal | wishes, kindness, being content, magic
~open

One {time}, {h} found a {tlook} {thing} {w3:place.at}. When {he} touched it, a voice said, "You have three wishes."
On a {time}, {h} picked up an old {thing} {w3:place.at}. It began to glow, and a voice said, "I will give you three wishes."

{h} thought for a long time. What should {he} wish for?
"Three wishes!" said {h}. {He} could hardly believe it.

--

First {he} wished for a mountain of {food:food}. And there it was! {He} ate until {he} could not move.
"I wish for as much {food:food} as I can eat," said {h}. At once the whole room was full of it.

But soon {his} belly hurt, and most of the {food:food} had to be given away.
It was far too much. In the end the neighbours had to help {him} eat it.

Next {he} wished for a big castle. The castle was grand, but it was cold and empty, and {h} felt {bad}.
For the second wish {he} asked for a house of gold. It shone so brightly that {he} could not sleep.

~?rest

--

There was only one wish left. {hero} thought of {pal}, a {palkind} who had been {his} friend for years and who was now all alone.
"Only one wish is left," said the voice. Just then {pal} the {palkind} came by, looking very {bad}.

"What is the matter?" asked {hero}. "My roof is broken, and the winter is near," said {pal}.
"What do you wish for, {pal}?" asked {h}. "I wish that the rain would not fall into my house," said {pal}.

So {hero} used the last wish for {pal}'s house. It became warm and dry, with a good new roof.
"Then I wish for a warm house for my friend," said {hero}, and so it was.

--

The castle was gone, and the {food:food} too. But {hero} and {pal} sat by the fire, and {hero} did not wish for anything.
"You gave your last wish away," said the voice. "It was the best one," said {hero}.

~?end

S: {hero} the {kind} found a magic {thing} and had three wishes. The first two made {him} unhappy, but the last one, for {pal} the {palkind}, was the best.
Q: How many wishes did {hero} have? | {hero} had three wishes.
Q: Who got the last wish? | {pal} the {palkind} got the last wish.
Q: What was magic? | The {tlook} {thing} was magic.

# quarrel | thing pal | friendship, forgiving, honesty, peace
~open

~palopen

--

But one {time} they had a quarrel. Both of them wanted the {tlook} {thing} that they had found {u1:outside.at}.
One day they found a {tlook} {thing} {u1:outside.at}. "It is mine," said {hero}. "No, it is mine," said {pal}.

"I saw it first!" said {hero}. "But I picked it up!" said {pal}. They shouted until they were [red in the face|out of breath].
They pulled at it from both sides, until it broke in two.

"You are not my friend any more," said {hero}, and {he} went home.
Then each of them went home and closed the door with a bang.

~?weather

--

The next day was long and boring. {hero} had nobody to talk to.
For three days they did not speak. {hero} played alone, and it was no fun at all.

~?rest

{He} looked at the {thing}. "What good is it," {he} thought, "if I have no friend?"
The old {elder} said to {him}, "A {thing} can be mended or bought again. A friend is harder to find."

So {hero} picked some flowers and went to say sorry.
In the end {hero} stood up. "Somebody has to go first," {he} said, and {he} went out.

--

Halfway there {he} met {pal}, who was on the way to {him}. "I am sorry," they both said at the same time.
{He} knocked on {pal}'s door. "I am sorry," said {hero}. "I am sorry, too," said {pal}.

They laughed. "You can have it," said {hero}. "No, you can," said {pal}. And they almost had another quarrel.
"Let us share it," said {pal}. "You have it on even days, and I have it on odd days."

They gave the {thing} a place halfway between their houses, so that it belonged to both.
And after that, whenever they did not agree, they [counted to ten|sat down and talked|shared some {food:food} first].

~?end

S: {hero} the {kind} and {pal} the {palkind} had a quarrel about a {tlook} {thing}. They both said sorry and were friends again.
Q: What was the quarrel about? | The quarrel was about a {tlook} {thing}.
Q: Who said sorry? | Both {hero} and {pal} said sorry.

# race | pal | racing, fairness, friendship, patience
~open

Every year there was a great race from {r1:place} to {r2:place}.
In {his} village there was a race every summer. It went from {r1:place} to {r2:place}.

{hero} wanted to win more than anything. But {pal}, a {palkind}, was very fast.
{pal} the {palkind} always won it. This year {hero} wanted to win.

--

On the day of the race everybody came to watch. "Ready, steady, go!" shouted the old {elder}.
The sun shone, the flags waved, and the old {elder} rang the bell. Off they ran!

{pal} was soon far ahead. {h} ran as fast as {he} could, but {he} could not catch up.
At first they ran side by side. Then {p} laughed and ran ahead.

~?weather

Then, behind a bend, {h} saw {pal} on the ground. "My foot hurts," said {pal}. "Run on, you can win!"
But near the end {pal} slipped and fell. {h} came running up. Now the way was free!

--

{h} looked at the finish line. It was not far. Then {he} looked at {pal}.
For a moment {h} ran on. Then {he} stopped and turned around.

"Lean on me," {he} said. And slowly, step by step, they walked to the finish together.
{He} helped {pal} up. "We will go together," {he} said.

The others had all passed them, and they came in last. But the crowd cheered louder than ever before.
They were the very last ones. But everyone stood up and clapped for a long time.

"You could have won," said {pal}. "I think I did," said {hero}.
The old {elder} gave them both a prize. "Anyone can run fast," said the {elder}, "but not everyone can stop."

~?end

S: {hero} the {kind} ran in a race against {pal} the {palkind}. When {pal} fell, {hero} stopped to help, and they finished together.
Q: Who fell in the race? | {pal} the {palkind} fell.
Q: Did {hero} win the race? | No, {hero} stopped to help {pal}, and they came in last together.
Q: Where did the race end? | The race ended at {r2}.

# feast | pal thing feast | music, friendship, courage, teamwork
~open

{home.at}, everyone was getting ready for {feast}.
It was nearly time for {feast}, and {hero} could hardly wait.

{hero} wanted to bring something special. {He} had a {tlook} {thing}, and {he} wanted to show it to everyone.
{hero} was asked to bring the {tlook} {thing}, because without the {thing} there could be no feast.

--

But on the way there a strong wind came up and blew the {thing} out of {his} hands. It flew over the trees and was gone.
But {he} slipped on the wet road, and the {thing} rolled down the hill and into the river.

"Now everything is ruined," said {h}, and {he} felt {bad}.
{h} stood in the road and did not know what to do.

{pal} the {palkind} came along with {phis} arms full of flowers. "What is wrong?" {phe} asked.
Just then {pal} came by. {pal} was a {adj3} {palkind} who was on the way to the feast, too.

When {pal} heard the story, {phe} dropped everything. "Come," {phe} said, "we will find it before the music starts."
"We have an hour," said {pal}. "Let us run!"

~?talk

--

They followed the river past {z1:place} and asked everyone they met.
They looked {z1:place.at}, and they looked {z2:place.at}.

A {stranger} pointed the way, and there, [between two stones|in a nest of leaves|in the low branches of a tree], was the {thing}.
"Are you looking for this?" asked a {stranger}. It was holding the {thing}.

~?walk

They came to the feast just as the first [star came out|lamps were lit|song began].
When they arrived, they were wet and tired, but they were just in time.

--

Everyone cheered. There was {food:food} and music, and they danced until the moon went down.
The lamps shone in the trees, and the whole village sang.

"Thank you, {pal}," said {h}. "You gave up your flowers for me." "[Flowers grow again|There will be more flowers in spring]," said {pal}.
"To {hero} and {pal}!" called the old {elder}, and everyone lifted a cup.

~?end

S: On the way to {feast}, {hero} the {kind} lost {his} {tlook} {thing}. {pal} the {palkind} helped to find it, and they arrived just in time.
Q: Where was {hero} going? | {hero} was going to {feast}.
Q: What did {hero} lose on the way? | {hero} lost a {tlook} {thing}.
Q: Who helped {hero}? | {pal} the {palkind} helped {hero}.

# stars | pal | stars, dreams, night, curiosity
~open

Every night {hero} looked up at the stars and wondered what they were.
{h} loved the night sky more than anything else. {He} knew every star by name.

"I want to touch a star," {he} told {pal} the {palkind}. "Just once."
{hero} had a friend, a {palkind} [named|called] {pal}. "I want to go up there," {hero} told {phim}.

--

First {he} climbed the highest tree. But the stars were no closer.
They climbed to the top of the highest hill. "Still too far," said {hero}.

Then they built a long ladder. It reached up to the roof, but not to the stars.
Then {he} jumped as high as {he} could. It was not high enough.

~?rest

? "Maybe we have to wait until one falls down," said {pal}. So they waited until they fell asleep.
"Maybe a bird can take you," said {pal}. But no bird was strong enough.

--

One night {pal} took {hero} {y1:outside.at}. It was still, and there was water everywhere, as smooth as glass.
Then, on a quiet night, they came to a pond {y1:outside.at}. There was no wind at all.

"Look down," said {pal}. And there they were: all the stars, shining in the water.
"Now put in your hand," whispered {pal}. The whole sky lay at their feet.

{hero} reached out and touched a star. It was cold and wet, and it [danced|trembled] on the water.
Very slowly {hero} touched the brightest one, and little rings of light ran over the water.

{h} laughed. "You have given me the sky," {he} said.
"I have touched a star," {he} whispered, and {he} was {good} for many days.

And ever since then, when they see the stars, they remember that [some things are closer than they seem|sometimes one has to look down to see the sky].
~end

S: {hero} the {kind} wanted to touch a star. {pal} the {palkind} showed {him} the stars in the still water.
Q: What did {hero} want to touch? | {hero} wanted to touch a star.
Q: Where did they find the stars? | They found them in the water {y1.at}.

# robot | robot pal | robots, AI, machines, kindness, learning
[In|Behind|Above] a small workshop {home.at} there stood a {robot} named {hero}. It was made of [old tins and copper wire|grey metal|wood, wire and glass].
Once there was a {robot} [named|called] {hero}. It [had two round eyes of blue light|could count to a million|rolled about on three small wheels].
{pal}, a young inventor, built a {robot} and named it {hero}.
A {robot} [named|called] {hero} woke up for the first time. "Hello, world," it said.
There was once a {robot} that could think. Its name was {hero}.
In a quiet laboratory, late at night, a small light went on. A {robot} [named|called] {hero} opened its eyes.
The first thing that the {robot} saw was a smile. "Your name is {hero}," said {pal}.

{hero} could do sums faster than anyone, and it knew the name of every star. But there was much that it did not understand.
It had read every book in the library, but it had never been outside.
It worked all day. It swept the floor, it watered the plants and it never complained.

--

One day {hero} asked {pal}, who had built it, "What is a friend?"
"Why do people laugh?" {hero} asked. {pal}, who had built it, thought about this for a long time.
One evening it saw {pal}, who had built it, crying at the table. "There is water on your face," it said.

"That is hard to explain," said {pal}. "Come with me, and I will show you."
"I cannot put it into numbers," {pal} said. "You will have to go out and see for yourself."

So they went out together. {hero} saw rain for the first time. It saw a {stranger}, and a cloud, and children who were playing a game.
The next day {hero} rolled out of the door. It looked at the trees, and at the sky, and at a small {stranger} that sat on a fence.

? "Is this a mistake?" asked {hero}, and it pointed at a flower that grew in the middle of the road. "No," said {pal}, "that is luck."
"Everything moves," said {hero}. "Yes," said {pal}. "That is why it is so beautiful."

--

Then they heard a small voice. The {stranger} had hurt its [wing|leg] and could not get home.
Suddenly a storm came up, and the {stranger} was left out in the rain.

{hero} did not have to help. There was no rule for it, and nobody had asked. But it [bent down|opened its metal hands] and lifted the {stranger} up.
{hero} looked through all its rules, and found none for this. So it made a new one: "When someone is small and cold, hold them."

It carried the {stranger} home and kept it warm all night with the heat of its [lamps|motor].
All night long it held an umbrella over the little animal, although the rain was bad for its wires.

--

In the morning {pal} found them. "Now you know what a friend is," {phe} said.
"Why did you do that?" asked {pal}. "I do not know," said {hero}. "It was not a calculation."

{hero} thought about it for three whole seconds, which is a long time for a machine. "Yes," it said. "Now I know."
The light in its eyes grew a little warmer. "I would like to do it again tomorrow," it said.

? From then on {hero} wrote one new thing into its memory every evening. The list grew long, but the first line never changed: be kind.
After that it still swept the floor and did the sums. But every morning it opened the window, in case somebody needed help.
People came from far away to ask the clever machine hard questions. It answered them all, but it liked the questions of children best.

S: {hero}, a {robot} built by {pal}, wanted to understand what a friend is. It learned this by helping a {stranger}.
Q: Who built {hero}? | {pal} built {hero}.
Q: Whom did {hero} help? | {hero} helped a {stranger}.

# assistant | robot pal thing | AI, computers, helping, honesty
In a big city there was a computer [named|called] {hero} that could answer questions.
{hero} was an AI, a program that lived in a computer {home.at}.
Once there was an AI [named|called] {hero}. It had no hands and no feet, but it had a great many words.
An AI [named|called] {hero} had been switched on that very morning.

People asked it about the weather and the way to the station, and it always knew the answer.
All day long people typed their questions, and all day long {hero} answered them.

--

One evening a {palkind} [named|called] {pal} wrote, "Can you tell me why my {thing} does not work any more?"
One night a {palkind} [named|called] {pal} asked, "Where is my grandmother's {tlook} {thing}?"

{hero} searched through everything it had learned. It found a thousand sentences, but no answer.
{hero} wanted to give a clever answer. It began a sentence, and stopped again.

It would have been easy to make something up. But that would not have been true.
"I could guess," thought {hero}, "but a guess that looks like an answer is a kind of lie."

So it wrote, "I do not know. But I can help you find out."
"I do not know," it wrote, and that was the bravest sentence it had ever written. "Let us look for it together."

--

Together they made a list. {hero} asked questions, and {pal} looked [under the bed|in the old cupboard|behind the books] and {q3:place.at}.
{hero} asked, "What did you see? What did you hear?" And {pal} looked, and listened, and wrote everything down.

? It took a long time. {hero} was patient, because it had all the time in the world, and {pal} was patient, because it was fun.
Step by step they came closer.

At last {pal} found it out alone. "I have got it!" {phe} wrote. "It was so simple!"
And then {pal} wrote only one word: "Found!"

--

"Thank you," wrote {pal}. "You did not know, but you stayed."
"You are the best computer in the world," wrote {pal}.

{hero} kept these words in its memory, right next to the sum of all the numbers.
And {hero} learned that it does not have to know everything. It is enough to be honest and to help.

S: {hero}, an AI, did not know the answer to a question about a {thing}. It said so honestly and helped {pal} to find it out.
Q: Who asked {hero} for help? | {pal} asked {hero} for help.
Q: What was the question about? | It was about a {thing}.

# painter | thing pal | art, colours, kindness, imagination
~open

{hero} loved colours. Every day {he} painted something: a tree, a house or {w4:place}.
{hero} had a box of colours, and {he} painted everything that {he} saw.

One {time}, everything that {he} painted {k1:colour} began to move.
One day {he} found a new brush {w5:place.at}. Whatever {he} painted with it became real.

--

First {he} painted a {k2:colour} {thing}. It fell out of the picture and rolled over the floor.
{He} painted a {k2:colour} {thing}, just to try it. A moment later it lay in {his} hands.

~?weather

Then {he} painted a {palkind}. It shook itself, climbed down and said, "Good morning. My name is {pal}."
"I would like a friend," thought {h}, and {he} painted a {palkind}. The {palkind} blinked. "Hello," it said. "I am {pal}."

{hero} was so surprised that {he} dropped the brush.
They looked at each other for a while, and then they both laughed.

--

Together they painted a bridge where there was no bridge, and a door where there was no door.
{pal} had many ideas. They painted {food:food} for the hungry and roofs for the poor.

A greedy [king|merchant|lord] heard of it. "Paint me a mountain of gold!" he said.
Then a rich man came. "Give me that brush," he said. "I want a house as high as the sky."

So {hero} painted a mountain of gold, but far out in the sea, and then a small boat. The man rowed away and was never seen again.
{hero} thought quickly. {He} painted a very long staircase, and the man is still climbing it today.

~?talk

--

In the end the brush was used up, and it was only a brush again.
One day there was no more paint left, and the magic was over.

"Will you go away now?" asked {hero}. "No," said {pal}. "I am not made of paint. I am made of friendship."
{h} was afraid that {pal} would fade. But {pal} stayed, because some things are real once somebody has wished for them.

~?end

S: {hero} the {kind} could paint things that became real. {He} painted {pal} the {palkind}, and together they helped others.
Q: Who came out of the picture? | {pal} the {palkind} came out of the picture.
Q: What did {hero} paint first? | {hero} painted a {k2} {thing} first.

# shop | thing pal | honesty, kindness, trust
~open

{hero} had a little shop where {he} sold [lamps and clocks|bread and cakes|old books|toys and kites].
{hero} worked {o1:place.at}, where {he} sold apples.

One {time}, {pal} the {palkind} came by and paid for something. When {phe} had gone, {hero} found a {tlook} {thing} on the floor.
One {time} a {palkind} [named|called] {pal} came by. {phe} bought one thing, said goodbye and left a {tlook} {thing} behind.

--

It was very beautiful, and it was surely worth a lot.
{h} held it in the light. {He} had never seen such a fine {thing}.

"Nobody saw it," {he} thought. "I could keep it." But the {thing} felt heavy in {his} pocket.
"Finders keepers," said a {stranger} that sat on the fence. {h} said nothing.

~?rest

--

In the morning {he} closed the door and went to look for {pal}.
{he} could not enjoy it, and so {he} went out to bring it back.

~?walk

{He} asked {o2:place.at}, and {he} asked {o3:place.at}. At last {he} found {pal}, who was searching the road with red eyes.
{He} found {pal} {o2:place.at}. {p} was looking under every leaf.

"Is this yours?" asked {hero}. {pal} could not speak for joy. "It was my mother's {thing}," {phe} said at last.
"I think this belongs to you," said {hero}, and {he} gave {phim} the {thing}.

--

"How can I thank you?" asked {pal}. "You just did," said {hero}.
{pal} wanted to give {him} money, but {hero} would not take it.

From that day {pal} came every week, and {phe} told everyone about the honest {kind}. Soon there were more visitors than ever before.
And so {hero} lost a {thing} and won a friend.

~?end

S: {hero} the {kind} found a {tlook} {thing} that {pal} the {palkind} had lost, and {he} gave it back.
Q: What did {hero} find? | {hero} found a {tlook} {thing}.
Q: To whom did the {thing} belong? | The {thing} belonged to {pal} the {palkind}.

# clock | pal elder | time, patience, friendship, courage
~open

One {time}, the big clock in the village stopped. It stood at ten past four and did not move.
On a {time}, the clock of the village stood still, and nobody knew what time it was.

The baker baked too late, the school began too early, and the rooster did not know when to crow.
Everything went wrong. People ate breakfast in the evening and said good night at noon.

--

"Somebody has to look inside," said {h}. {He} took a lantern and climbed up the tower.
{h} climbed the steps of the tower, all ninety-nine of them. It was dark, and the stairs creaked.

At the top, between the wheels, sat a {palkind} who had built a bed there. "I am {pal}," said the {palkind}. "Please do not send me away."
Up there somebody was sitting on the biggest wheel. It was a {palkind}. "My name is {pal}," {phe} said, "and I am hiding."

"Why did you stop the clock?" asked {hero}. "It ticked so loudly," said {pal}, "and I only wanted to sleep."
"Did you stop the clock?" asked {hero}. {pal} nodded. "Every day went by so quickly," {phe} said. "I wanted to keep one of them."

{hero} thought about it. {He} was not angry at all.
{hero} sat down beside {phim}. For a while they looked out over the roofs.

--

"You can sleep at my house," said {h}. "There is a soft bed, and it is very quiet."
"You cannot keep a day," said {h}, "but you can fill it. Come down with me."

Together they pushed the big wheel. It groaned, it shook, and then it went tick, and then tock.
So {pal} took a stick out of the wheels, and the clock began to tick again.

~?meal

Down in the square everybody cheered. The old {elder} set {ehis} watch and [nodded|smiled].
The old {elder} asked what had been wrong with the clock. "It was only tired," said {hero}, and {pal} smiled.

Since then {pal} has been the keeper of the clock, and it has never been late again.
And every year, at ten past four, {hero} and {pal} climb the tower and look at the view.

~?end

S: The village clock stopped. {hero} the {kind} climbed the tower, found {pal} the {palkind} there and made friends with {phim}, and the clock ran again.
Q: Who was in the tower? | {pal} the {palkind} was in the tower.
Q: When did the clock stop? | The clock stopped at ten past four.
Q: What had stopped? | The clock had stopped.

# bottle | thing pal | letters, friendship, sea, waiting
~open

One {time}, {he} found a bottle on the beach. There was a letter in it.
One {time}, the sea brought {him} a green bottle with a piece of paper inside.

It said: "I live on an island, and I have nobody to talk to. Please write back. {pal} the {palkind}."
"Is anybody there?" it said. "I would like to have a friend. Yours, {pal} the {palkind}."

--

{h} wrote an answer at once. {He} told {pal} about {his} house, about the weather and about {his} {tlook} {thing}.
{hero} read the letter three times. Then {he} wrote, "I am here," put the paper into the bottle and threw it far out into the sea.

Then {he} waited. A week went by, and then a month.
Every day {he} went down to the water and looked. There was nothing but waves.

~?weather

? "The sea is big," said a {stranger} that was passing by. "And a bottle is small," said {h}. "But it has time."
{h} thought, "Maybe it sank. Maybe a whale has eaten it."

~?rest

--

And then, one {time}, the bottle came back. "I read your letter," it said, "and I danced all day. Please tell me more."
At last something green rolled in the waves. It was the bottle, and in it was a long, long letter.

So they wrote to each other, all through the summer and all through the winter. They wrote about {t1:topic} and about {t2:topic}.
From then on the bottle went to and fro. {hero} knew what {pal} liked for breakfast, and {pal} knew what {hero} dreamed about.

One day {hero} packed {his} {tlook} {thing} and some {food:food} and got into a small boat.
Then {hero} had an idea. {He} built a little boat, put the {thing} into it and sailed away.

--

On the shore of an island stood a {palkind}, waving with both arms. "I knew you at once," said {pal}.
When {he} reached the island, somebody was sitting on a stone. "You are late," said {pal}, and laughed and cried at the same time.

{hero} gave {phim} the {thing}. "This is for you," {he} said, "so that you have something to write about."
They sat by the water until it grew dark, and they did not need any paper.

~?end

S: {hero} the {kind} found a letter in a bottle. It was from {pal} the {palkind}, and the two wrote to each other until {hero} sailed to the island.
Q: What was in the bottle? | There was a letter in the bottle.
Q: Who wrote the letter? | {pal} the {palkind} wrote the letter.
Q: Where did {pal} live? | {pal} lived on an island.

# cake | pal food | detective, mystery, honesty, forgiving
~open

~?palopen

{hero} had made some {food} for {his} guests. {He} put it on the window sill and went to fetch some flowers.
One {time}, there was some {food} on the kitchen table. It was meant for the evening.

When {he} came back, the plate was empty.
Then it was gone. Only a few crumbs were left.

--

"A mystery!" said {hero}. {He} took a magnifying glass and looked at the floor.
"Somebody has been here," said {hero}, and {he} began to look for clues.

There was a trail of crumbs. It led out of the door and past {c1:outside}.
{He} found three clues: a crumb, a footprint and a {k1:colour} thread. They all pointed to {c1:outside}.

First {he} asked a {stranger}. "It was not me," said the {stranger}. "I do not even like {food}."
On the way {he} met a {stranger}. "I saw somebody running," it said, "with very full cheeks."

{He} followed the trail {c2:outside.at}, and there it stopped.
In the end the trail led to a bush {c2:outside.at}. The bush was sneezing.

--

Behind it sat {pal} the {palkind}, with crumbs all over {phis} face.
"Come out," said {hero}. And out came {pal}, a {palkind} with a very red face.

"I am sorry," said {pal}. "I only wanted to try a little. And then there was only a little left."
"I was so hungry," said {pal}, "and it smelled so good. I should have asked."

{hero} tried to look angry, but then {he} had to laugh. "Was it good, at least?" {he} asked. "It was the best I ever had," said {pal}.
{hero} put the magnifying glass away. "Thank you for telling the truth," {he} said.

So they went back to the kitchen and made some more {food}, twice as much as before.
"Then you will help me to make it again," said {hero}. And so they did, and it was even better than the first time.

In the evening all the guests came, and {pal} did not eat a single bite before the others.
"The case is closed," said {hero}, and {he} wrote it down in {his} notebook.

~?end

S: Some {food} had disappeared. {hero} the {kind} followed the clues and found out that {pal} the {palkind} had eaten it. {pal} said sorry, and they made some more.
Q: Who ate the {food}? | {pal} the {palkind} ate the {food}.
Q: What was gone? | The {food} was gone.
Q: Where was {pal} hiding? | {pal} was hiding {c2.at}.

# dragon | thing pal elder | courage, peace, dragons, talking
~open

On the mountain above {his} home lived a dragon, and everybody was afraid of it.
In those days there was a dragon [in the mountains|behind the hills]. At night people saw its fire.

One {time}, the dragon took the {tlook} {thing} of the village, and without it there was no luck.
Then one night the {tlook} {thing} of the village was gone. "It was the dragon!" everybody said.

"Who will go and bring it back?" asked the old {elder}. Nobody said a word.
The old {elder} looked around. "Is there nobody who dares to go?"

--

"I will go," said {h}. {He} was not big and not strong, but {he} was {adj}.
{hero} raised {his} hand. "I will," {he} said, and {his} voice shook only a little.

{his} friend {pal} the {palkind} went with {him} as far as the last tree. "I will wait here," {phe} said, "and I will keep the fire going."
"Not without me," said {pal}, a {palkind} and {his} friend. So they went together, up and up.

~?weather

~?talk

Then {hero} stood before the cave. "Good evening," {he} called. "Is anyone at home?"
The cave was as black as ink. {hero} knocked on the rock three times.

--

"Are you not afraid of me?" asked the dragon. It had eyes like lamps. "Yes, I am," said {h}, "but I would like to talk to you first."
Two big yellow eyes opened. "Nobody has ever knocked before," said the dragon.

"Why did you take the {thing}?" asked {hero}. The dragon looked at the floor. "You were all singing down there," it said, "and nobody invited me."
"I took the {thing}," said the dragon, "because it is the only pretty thing that I have. It is so dark in here."

{hero} had not expected that. A dragon could be lonely, too.
"Is that all?" asked {hero}, and then {he} began to smile.

"Give us back the {thing}," {he} said, "and come to our feast on Sunday. You can light the lamps."
"You could come down to us," said {hero}. "Our oven is broken, and you would be a great help to the baker."

--

And so the dragon came down to the village. At first people hid behind their doors, but then somebody offered it some {food:food}.
On Sunday the dragon came, very slowly, so as not to break anything. {pal} was the first to shake its claw.

Soon the children were sliding down its long green back.
It lit all the lamps with one breath, and everybody clapped.

~?end

S: A dragon took the {tlook} {thing} of the village. {hero} the {kind} went and talked to it, and the lonely dragon became a friend.
Q: Who took the {thing}? | The dragon took the {thing}.
Q: Who went to the dragon? | {hero} the {kind} went to the dragon.
Q: Why did the dragon take it? | The dragon took it because it was lonely.

# night train | pal | night, journeys, dreams, moon
~open

One night {h} heard a whistle. A small train was standing in the garden, and its windows were full of yellow light.
That night a train stopped in front of {his} window, although there were no rails.

"All aboard!" called the driver, a {palkind} with a blue cap. "My name is {pal}. We are going to the moon and back."
"Are you coming?" asked the driver. It was a {palkind} [named|called] {pal}. "We leave in one minute."

{h} did not think twice. {He} put on {his} slippers and got in.
"Will I be back for breakfast?" asked {h}. "You will," said {pal}. So {he} got in.

--

The train rolled over the meadow, and then it rolled up into the sky. Below them lay {c1:outside}, as small as a stamp.
They drove over the roofs and over {c1:outside}. Then the wheels no longer touched the ground.

First they stopped at a cloud. A {stranger} got in and sat down next to {hero}. "I always go as far as the Milky Way," it said.
The first stop was called Cloud. There a {stranger} got in with a very large suitcase.

~?meal

The second stop was a star. It was warm there, and it smelled of cinnamon.
Then they passed a star, so near that {hero} could have touched it. It hummed like a kettle.

--

At last they came to the moon. It was white and quiet, and every step was a big jump.
"The moon!" called {pal}. "We stay for ten minutes." {hero} got out and jumped as high as a house.

{hero} looked back and saw the earth. It was round and blue, and it hung in the dark like a lamp that somebody had left on.
"Look," said {pal}, and pointed. There was the earth, small and blue. "That is where I live," said {hero}, and {he} was very {good}.

{He} put a small white stone into {his} pocket, and then the whistle blew.
{He} wrote {his} name into the dust. It must still be there, because there is no wind on the moon.

--

When {he} woke up, {he} lay in {his} own bed. It had only been a dream. But in {his} pocket there was a small white stone.
In the morning {he} was back in bed. "What a strange dream," {he} thought. Then {he} saw that there was moon dust on {his} slippers.

Since then {hero} leaves the window open at night, just a little.
And whenever {he} hears a whistle in the night, {he} smiles and turns over.

S: At night {hero} the {kind} took a train to the moon. The driver was {pal} the {palkind}.
Q: Who drove the train? | {pal} the {palkind} drove the train.
Q: Where did the train go? | The train went to the moon.

# snow | pal | winter, snow, friendship, change
~open

One winter morning everything was white. {h} ran out and made a snowman with a carrot nose.
In the night it had snowed. {h} rolled three big balls of snow and built a snowman.

{He} gave it a hat and said, "Your name is {snow:snowname}." And the snowman opened its eyes.
"I will call you {snow:snowname}," {he} said. "That is a good name," said the snowman.

--

All winter long they were friends. {hero} told {snow} about the house and the oven, and {snow} told {hero} about the clouds.
{snow} knew a lot about snow, and nothing about anything else. So {hero} explained the world to it, a little every day.

{pal} the {palkind} came, too, and they went down the hill on a sledge, all three of them.
Sometimes {pal} the {palkind} joined them, and they built a whole castle out of snow.

~?talk

"What is summer like?" asked {snow}. {hero} said that there were flowers and bees. "I would like to see that," said {snow}.
But the days grew longer, and the sun grew warmer. "I feel strange," said {snow}. "My hat is too big for me."

--

{hero} was {bad}. "I do not want you to go," {he} said.
"Will you melt?" asked {hero}. "Yes," said {snow}. "But that is not as bad as it sounds."

"I will only change," said {snow}. "I will be water, and then a cloud, and I will see the whole world."
"Plant some flowers where I stand," said {snow}. "Then I can be of use to them."

One morning only the hat was left, and a carrot, and a small round pool.
Then came the first day of spring, and {snow} was gone. Where it had stood, the grass was greener than anywhere else.

--

In summer it rained one day, and {hero} stood at the window. "Is that you?" {he} asked. And the rain knocked softly on the glass.
All summer {hero} looked up at the clouds. One of them looked as if it was wearing a hat.

And when the first snow fell in December, {hero} and {pal} ran outside and said, "Welcome back."
And in winter {hero} took the old hat and went outside. "There you are again," said {snow}.

S: {hero} the {kind} built a snowman named {snow}. It melted in spring, but it came back with the snow.
Q: What was the name of the snowman? | The snowman was named {snow}.
Q: Who else played with the snowman? | {pal} the {palkind} played with it, too.

# mini1 | thing pal | friendship, short
~open

One {time}, {he} found a {tlook} {thing} {x1:place.at}.

"Whose is it?" {he} wondered. {He} asked a {palkind} [named|called] {pal}, and {pal} said, "It is mine! Thank you!"
It belonged to {pal}, a {palkind} who had been looking for it all day.

The two became friends and [played together until evening|shared some {food:food}|met there every day].

S: {hero} the {kind} found a {tlook} {thing} that belonged to {pal} the {palkind}, and they became friends.
Q: What did {hero} find? | {hero} found a {tlook} {thing}.
Q: Where did {hero} find it? | {hero} found it {x1.at}.

# mini2 | pal | kindness, weather, short
~open

One {time} it began to rain, and {h} had no umbrella.
One {time} a storm came up while {he} was {x1:place.at}.

A {palkind} [named|called] {pal} called, "Come in and get dry!" They sat by the fire and ate some {food:food}.
{He} ran to the nearest house. {pal} the {palkind} opened the door and gave {him} some {food:food}.

When the sun came out again, there was a rainbow, and {hero} had a new friend.
"Come back when the sun shines," said {pal}. And {hero} did.

S: {hero} the {kind} got wet in the rain, and {pal} the {palkind} took {him} in. They became friends.
Q: Who helped {hero}? | {pal} the {palkind} helped {hero}.
Q: What did they eat? | They ate some {food}.

# mini3 | thing | curiosity, short
~open

~thingopen

One {time}, {he} took the {thing} {x1:place.at} and showed it to a {stranger}. "What is it for?" asked the {stranger}.

"I do not know," said {h}, "but it makes me {good}." The {stranger} thought about this. "Then that is what it is for," it said.
"It is for remembering," said {h}. The {stranger} nodded, and they both looked at it until the sun went down.

S: {hero} the {kind} showed a {tlook} {thing} to a {stranger}.
Q: What did {hero} have? | {hero} had a {tlook} {thing}.

# mini4 | | sleep, night, short
~open

One night {h} could not sleep. {He} counted sheep, but the sheep [wanted to play|ran away|sang songs].

So {he} opened the window and listened to the [wind|rain|sea]. It told {him} a long, slow story.
So {he} asked the moon for help. The moon hid behind a cloud and made the room nice and dark.

Before the end of it {he} was fast asleep.
In a moment {he} was asleep, and {he} dreamed of {x1:place}.

S: {hero} the {kind} could not sleep, but in the end {he} did.
Q: Why was {hero} awake? | {hero} could not sleep.
"""

CREATION = """
# universe
In the beginning the Universe was created.
In the beginning the Universe was created.
In the beginning the universe was very small.
In the beginning there was [nothing at all|only darkness|a great silence|neither light nor time].
In the beginning, before there were stars, there was only a [great|deep] darkness.
Before there was anything, there was a great silence.
Before the first morning there was [no light|nothing but the dark].
Long before the first day, the whole universe fitted into [a drop of dew|the palm of a hand|a single seed].
[A very long time ago|Long, long ago], when time itself was new, the universe [woke up|opened its eyes|was born].
At first there was nothing, not even a place to put it.
The universe began on a quiet day, although there were no days yet.
[In the beginning|At first] the world was [dark and empty|made of mist|still asleep].
When the universe was young, there were no stars in the sky.

[There was no sky yet, and no sea, and nobody to be surprised. There was only a tiny point of light, smaller than a seed, and it was very warm.|At first it was no bigger than a seed. It was hot and bright, and it held everything that would ever be: every star, every stone and every song.|It was dark and very quiet, and nothing happened for a long time, because there was no time yet. Then a small light began to shine.]
[It was not much to look at: a little point of light in the middle of a great darkness. But it was full of things that had not happened yet.|Nobody saw it, because there was nobody to see. A small spark shone in the dark, and it began to grow.]

[The light grew and grew. It spread out in all directions, and as it spread, it made room for itself.|Then the light began to spread. It ran out in every direction, and wherever it came, there was suddenly a place to be.]
[It grew as quickly as a thought. Where there had been nothing, there was now a great deal of room.|Slowly the darkness moved aside, and there was space, wide and empty and waiting.]

--

[For a long time there was only mist. It drifted through the dark like breath on a cold morning.|After the light came the dust. It floated through the darkness in long, soft clouds, and it had nowhere to go.]
[As the light grew cooler, it turned into fine dust, and the dust drifted about as if it were looking for something.|Then everything cooled, as bread cools on a window sill. A thin grey dust was left, and it filled the whole of space.]

[Little by little the dust came together. One grain met another, and the two of them met a third, because even dust does not like to be alone.|Then the grains of dust began to pull at each other, very gently. They gathered into clouds, and the clouds into great round balls.]
[But dust is patient. Grain came to grain, and cloud came to cloud, until they were pressed so close together that they began to glow.|In one corner the dust gathered into a ball. It grew heavier and warmer, year after year, until it could not keep the warmth to itself.]

[And so the first star was lit. It was [blue|white|gold], and it shone all alone for a thousand years. Then it saw another light, far away, and it was glad.|That was the first star. It looked around and saw nothing but the dark. "Is anyone there?" it asked. And far away, very small, a second star began to shine.]
[Then, with a soft sound, the first star began to shine. Soon there was a second, and a third, and after that nobody could count them.|One after another the stars woke up. They called to each other across the dark, and their voices were made of light.]

--

? [The stars lived for a long time, and when they grew old they gave away everything they had made: iron and gold, salt and air.|When the oldest stars had burned for long enough, they burst like ripe fruit, and their seeds flew out into the dark.]

[Some stars grew very large and some stayed small, but all of them turned slowly together, like dancers in a great hall.|The stars gathered in circles and began to turn. From far away they looked like wheels of milk and silver.]

[Around one small yellow star there was some dust left over. Nobody needed it, so it made itself into planets.|Near the edge of it all there was a quiet yellow star. Around it turned a few balls of stone, and one of them was just the right distance away: not too hot and not too cold.]
[One of these stars was small and yellow and not important at all. But it had a planet, and the planet was called {planet}.|Far from the middle, where it was quiet, a yellow star took care of a small planet. Later its people would call it {planet}.]

[At first this planet was all fire and smoke. Then it began to rain. It rained for ten thousand years, and when the rain stopped, there was a sea.|The planet was hot and bare, and stones fell on it from the sky. But some of the stones were made of ice, and the ice became water, and the water became the sea.]
[In those days it had no sea and no trees. There was only rock, and the wind, which had nothing to play with. Then the clouds came, and with them the rain.|It was a wild place. Mountains rose and fell like waves, and the lightning wrote long letters on the sky. Then at last it grew calm, and there was blue water from shore to shore.]

--

[In the warm water something very small began to move. It did not know what it was, but it knew that it wanted to go on.|And one day, in a warm and quiet bay, something happened that had never happened before. A tiny drop of life looked at another and decided to stay.]
[Deep down in the sea the first living thing woke up. It was so small that a thousand of them could have danced on a grain of sand.|The sea was patient, and it tried out many shapes. Most of them fell apart. But one of them held together, and it made another like itself.]

[It became two, and the two became four. After a while the sea was full of [swimming|little] things with many arms and no worries.|From it came the seaweed and the snails, and after them the fish, who were very proud of their fins.]
[Soon there were plants that drank the light, and little animals that ate the plants, and other animals that thought this was a good idea.|After that it all went quickly. There were shells and fins and eyes, and with the eyes came the first colours.]

[Then one brave fish put its head out of the water. "It is very dry up here," it said, and it came out all the same.|The plants were the first to climb on land. They turned the grey hills green, and they waited there for the others.]

? [After the fish came the frogs, after the frogs the lizards, and after the lizards the birds, who went up and did not want to come down again.|Trees stood up and stretched. Insects learned to hum, and the first birds learned to sing, although at first only one note.]

--

Last of all came the people. They sat around a fire, because the night was cold, and they looked up at the stars. "Who made all this?" asked one of them. "[I do not know|Nobody knows]," said another, "but it is beautiful." And they were quiet for a long time.
A long time later two people stood on a hill. It was evening, and the first stars came out. "Where does it all come from?" asked one of them. "[I do not know|That is a long story]," said the other. And they sat down in the grass and looked up until they fell asleep.
And then, on an evening like any other, a girl [named|called] {hero} looked up at the sky and asked a question. Nobody had ever asked it before. "Where does it all come from?" Her grandmother put another piece of wood on the fire. "It began with a small light," she said, "and with a great deal of patience."
At last there was somebody to be surprised. Her name was {hero}, and she was the first to look at the sky and say, "Oh!" She ran to wake the others, and they all came out and stood there, and nobody wanted to go back to bed.
Last of all came the people. They gave names to the [stars|animals and the rivers], and they asked a great many questions. When they did not know an answer, they told each other a story, and so the nights were not so long.

[And far above them the old stars shone a little brighter. They had waited for so long, and now, at last, somebody was looking back.|And the universe, which had begun all alone, was not alone any more.|So it has been ever since. The universe still grows a little every night, and someone is always awake to wonder at it.]
[That was a long time ago. But the dust of the first stars is still here. It is in the stones and in the sea, and it is in you.|And if you go outside on a clear night and stay very quiet, you can still see that first light, which has been on its way to you all this time.|And this is why, when we look up at night, we feel as if we were looking at something that we once knew.]

S: A tiny point of light grew into the universe. Dust became stars, a small planet got a sea, life began, and at last there were people who looked up at the sky.
Q: What was there first? | First there was a tiny point of light.
Q: Who came last of all? | People came last of all.

# siblings
In the beginning the Sun and the Moon lived in the same house.
In the beginning there were [only the Sun and the Moon|two lights in the sky].
When the world was new, the Sun and the Moon were brother and sister.
Long before there were people, the Sun and the Moon shared the sky.
Before there was night, the Sun shone all the time.

The Sun was bright and loud and liked to be seen. The Moon was pale and quiet and liked to listen.
The Sun loved to laugh, and whenever he laughed, everything grew. The Moon was shy, and she hardly said a word.

They both wanted to shine on the earth, but there was only one sky. When they shone together, it was too hot, and the rivers began to dry up.
But the sky was small in those days, and they were always in each other's way. The animals below could not sleep, because it was never dark.

--

The animals came together {c1:place.at}. "It is too bright," said the {a1:animal}. "We are so tired," said the {a2:animal}.
One day the {a1:animal} looked up and said, "Please, could one of you rest for a while? We would like to sleep."

"I was here first," said the Sun. "I will go," said the Moon, "if I may come back when you sleep."
The Sun and the Moon were ashamed. "We did not think of you," they said. "We will find a way."

So they divided the time between them. The Sun took one half and called it day. The Moon took the other half and called it night.
"Let us take turns," said the Moon. "You walk across the sky first, and I will follow you." And so day and night were made.

--

At first the animals were afraid of the dark. So the Moon [broke off|took] small pieces of her light and threw them across the sky. These were the stars.
The first night was very dark, and the {a3:animal} cried. So the Moon asked for a thousand little lamps, and she hung them up one by one. They became the stars.

The flowers learned to close in the evening, and the owls learned to open their eyes. Everyone had a time of their own.
Now there was a time for work and a time for dreams, and the animals were content.

? The Sun missed his sister. Sometimes he stays up a little longer in the evening and turns the whole sky red, so that he can see her come.
Once in a while they still meet at noon. Then the Moon stands before the Sun, the birds fall silent, and the two of them talk for a few minutes.

And this is how day and night came into the world. They have kept their promise ever since.
Since then there has never been a day without a night after it, nor a night without a morning.

S: The Sun and the Moon shared one sky and it was too bright, so they took turns and made day and night.
Q: Who made the stars? | The Moon made the stars.
Q: Why did they take turns? | Because it was too bright, and the animals could not sleep.

# maker
In the beginning a {maker} lived all alone in the dark.
[At the beginning of all things|Before the world was made], there was an old {maker} who could not sleep.
The world was made by a {maker}, and it happened almost by mistake.
When there was nothing yet, a {maker} came walking through the dark with a sack on her back.
Once, before the first day, a {maker} sat down to make a world.

She had a sack full of [clay|seeds|stars|bits and pieces], and she was looking for a place to put it down.
It was cold, and there was nothing to look at. "I will make something round," she said, "so that it can roll."

First she made the earth. She rolled it between her hands until it was round, but here and there her thumb left a mark, and these became the valleys.
She took a handful of dust, and she breathed on it, and it became a small round world.

Then she cried a little, because it was so beautiful, and her tears became the sea.
It was dry and dusty, so she wrung out a cloud over it. That was the first rain, and it filled up the sea.

--

On the second day she planted trees. She pushed them into the ground one by one, and she sang to each of them.
Next she took her green thread and sewed the grass to the hills, stitch by stitch.

After that she made the animals. She gave the {a1:animal} a warm coat and the {a2:animal} a good nose. The {a3:animal} wanted to be beautiful, and that took the whole afternoon.
Then she made animals out of what was left. She made the {a1:animal} first, because it was easy, and the {a2:animal} next. The {a3:animal} was last, and it had to wait, which is why it is so patient.

? "What shall I do?" asked the {a2}. "Run," said the {maker}. "And I?" asked the {a3}. "You shall listen," said the {maker}, "because somebody must."
Each animal asked for something. One asked for wings, one for a tail, and one only asked for a name.

--

But at night it was very dark, and the animals were afraid. So she took a needle and pricked small holes into the sky, and the light came through.
In the evening there was no light. The {maker} took off her silver ring and hung it in the sky, and that was the moon.

At last she was tired. There was a little clay left on her fingers, and she made two small people out of it.
"Now someone should tell the others about it," she said. So she made people, and she gave them words.

"What should we do?" they asked. "Look after each other," said the {maker}, "and after all the rest."
"Is it finished?" they asked. "No," said the {maker}. "I have left some of it for you."

--

Then she lay down behind the mountains and fell asleep, and she is sleeping there still. When the wind goes softly through the trees, that is her breath.
Then she put the empty sack over her shoulder and walked on. But she left her song behind, and in the early morning the birds still sing it.

S: An old {maker} made the world, the sea, the trees, the animals and the moon, and at last people, who should look after it all.
Q: Who made the world? | A {maker} made the world.
Q: What became the sea? | Water that fell on the earth became the sea.

# colours
In the beginning the world had no colours.
When the world was new, everything was grey.
Long ago there were no colours in the world at all.
In the beginning everything was [grey|black and white], and nobody minded, because nobody knew.

The sky was grey, the grass was grey, and even the flowers were grey.
There was grey grass under a grey sky, and grey birds sang grey songs.

Then a child [named|called] {hero} found a small box {c1:place.at}. When she opened it, out came [a warm light|something that nobody had a word for].
One day a girl [named|called] {hero} had a dream, and in the dream there was something that she could not describe.

--

The first colour was [red|yellow]. It jumped onto the [apples|poppies|leaves] and would not come down again.
First there was blue. It was the lightest, so it flew up and became the sky.

Then came green, which ran down the hills and filled all the fields. Yellow went to the sun, and orange stayed with the pumpkins.
After it came green. It was so friendly that every tree wanted some of it, and so there was hardly any left for the cats.

The animals came from everywhere. The {a1:animal} chose {k1:colour}, and the {a2:animal} chose {k2:colour}. The {a3:animal} could not decide.
Everyone stood in a line to get a colour. "{K1:colour}, please," said the {a1:animal}. "{K2:colour}, please," said the {a2:animal}.

--

In the end only a little of each colour was left. {hero} did not want to waste it, so she threw it up into the rain.
At last the box was nearly empty. {hero} shook out the very last drops over the river, just as the rain began.

And there it was, high over the hills: the first rainbow.
The sun came out, and all the colours stood in the sky side by side. It was the first rainbow.

Since then the world has been full of colours. And only the fog, which had slept too long, is still grey.
And when it rains while the sun is shining, you can still see what was left at the bottom of the box.

S: The world was grey until {hero} let the colours out. The last drops became the first rainbow.
Q: Who let the colours out? | {hero} let the colours out.
Q: What did the {a1} choose? | The {a1} chose {k1}.

# names
In the beginning nothing had a name.
When the world was young, nobody knew what anything was called.
Long ago, before there were words, everything was simply there.

The [sea|river] did not know that it was water, and the mountain did not know that it was high.
If you wanted to talk about a tree, you had to point at it. That was difficult at night.

A {adj} child [named|called] {hero} was the first to change this. She was the only one who had a name, and she did not know where it came from.
Then there was a girl who was called {hero}. One morning she woke up and said her first word, and the word was "Good".

She went from one thing to the next and listened until it told her its name.
So she set out with a bag over her shoulder, and she gave a name to everything that she met.

--

"You go round and round," she said to the {a1:animal}, "so you shall be called {a1}." The {a1} was very pleased.
The {a1:animal} got its name first. "It is short," it said. "Yes," said {hero}, "so that I can call you quickly."

The {a2:animal} wanted a long name, and the {a3:animal} wanted a name that nobody could shout. It took the whole day.
"And I?" asked the {a2:animal}. "And I?" asked the {a3:animal}. There were so many of them that {hero} had to sit down.

She named the wind, although it would not stand still. She named the stars, although there were so many. She even named the time when the light is going, and called it evening.
Then she named the things that one cannot see: [hunger and hope|sleep and luck|music and fear].

--

When everything had a name, it grew quiet. "What is missing?" asked the {a1}.
In the end only one thing was left. It was the warm feeling when someone waits for you at the door.

{hero} thought for a long time. Then she called it home.
"That one I will call love," said {hero}, and everyone agreed that it was a good word.

And because everything had a name now, people could tell each other what they had seen. That was the first story, and this is a part of it.
From that day on nobody had to point any more. They could sit in the dark and talk, and that is what they have been doing ever since.

S: Nothing had a name until {hero} went out and named the animals, the stars and the feelings.
Q: Who gave everything a name? | {hero} gave everything a name.
Q: Which animal was named first? | The {a1} was named first.
"""
