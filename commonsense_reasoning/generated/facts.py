"""The facts that the generated tasks ask for, written down for this repository.

Every line is "group: fact; fact; ...", and what a group and a fact are is said above each text. A fact serves either
training or testing and never both; `split_facts` decides which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from randlora_core.streams import Stream

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

# Yes or no, and a question about things: the things of which that is the answer.
PROPERTIES = """
yes, can {} fly: an eagle; a bat; a bee; a butterfly; an owl; a mosquito
no, can {} fly: a penguin; an ostrich; a dog; a whale; a snail; a tortoise
yes, does {} have legs: a spider; a table; a crab; a horse; a chair; a mouse
no, does {} have legs: a snake; a worm; a goldfish; a shark; a spoon; a pillow
yes, is {} hot: boiling water; lava; the sun; a burning match; a campfire; steam from a kettle
no, is {} hot: snow; ice cream; frost; an icicle; a glacier; a snowman
yes, does {} lay eggs: a hen; a turtle; a goose; a frog; a crocodile; a swan
no, does {} lay eggs: a cow; a cat; a sheep; a goat; a pig; a rabbit
yes, does {} need electricity: a television; a refrigerator; a vacuum cleaner; a computer; a toaster; \
a washing machine
no, does {} need electricity: a candle; a hammer; a wheelbarrow; a newspaper; a rocking chair; a hand saw
yes, is {} sharp: a razor; a needle; a thorn; broken glass; a scalpel; an arrowhead
no, is {} sharp: a cushion; a balloon; a sponge; butter; a sock; a marshmallow
yes, does {} float on water: a cork; a plank of wood; a rubber duck; a dry leaf; a life jacket; a beach ball
no, does {} float on water: a brick; an anchor; a coin; a stone; an iron nail; a cannonball
yes, is {} sweet: honey; sugar; chocolate; jam; toffee; maple syrup
no, is {} sweet: salt; vinegar; mustard; sea water; pepper; garlic
yes, is {} round: a ball; a wheel; an orange; the full moon; a pearl; a plate
no, is {} round: a book; a ladder; a ruler; a door; a staircase; a flag
yes, does {} have wheels: a bicycle; a bus; a skateboard; a tractor; a train; a shopping trolley
no, does {} have wheels: a canoe; a sledge; a tent; a kite; a raft; a hammock
yes, is {} made by people: a bridge; a clock; a shoe; a road; a violin; a fence
no, is {} made by people: a mountain; the moon; a river; a cloud; a volcano; an iceberg
yes, does {} eat meat: a lion; a wolf; a tiger; a crocodile; a hawk; a polar bear
no, does {} eat meat: a cow; a deer; a giraffe; a zebra; a koala; a camel
"""

# What is done, and with which tool. Tools of one group resemble each other; a wrong one is taken from another group.
USES = """
cut: cut out a paper star = scissors; slice a loaf = a bread knife; trim the hedge = hedge shears; \
chop firewood = an axe; shorten the grass = a lawn mower; split a plank = a saw
fasten: drive a nail into the wall = a hammer; tighten a screw = a screwdriver; loosen a bolt = a wrench; \
mend a broken vase = glue; sew on a button = a needle and thread; hang wet clothes on the line = clothes pegs
clean: sweep the floor = a broom; wash your hair = shampoo; dry the plates = a tea towel; \
get crumbs out of the carpet = a vacuum cleaner; clean your teeth = a toothbrush; wipe up spilt milk = a sponge
write: sign a letter = a pen; draw a straight line = a ruler; remove a pencil mark = an eraser; \
colour a drawing = crayons; put a point on a pencil = a sharpener; paint the ceiling = a paint roller
measure: see how late it is = a clock; find out whether a child has a fever = a thermometer; \
weigh the flour = kitchen scales; find north = a compass; see how long the room is = a tape measure; \
see how fast a runner is = a stopwatch; wake up at six = an alarm clock
kitchen: boil water for tea = a kettle; bake a cake = an oven; keep milk cold = a refrigerator; \
open a tin of beans = a tin opener; drain the noodles = a colander; turn over a pancake = a spatula; \
flatten dough = a rolling pin; eat soup = a spoon
wear: stay dry in the rain = an umbrella; shade your eyes = sunglasses; keep your fingers warm = gloves; \
protect your head on a bicycle = a helmet; keep your neck warm = a scarf; \
protect your clothes while cooking = an apron
move: reach the roof = a ladder; cross the ocean = an aeroplane; get to the tenth floor = a lift; \
glide over snow = skis; move a pile of bricks = a wheelbarrow; carry books to school = a backpack
see: look at the craters of the moon = a telescope; look at bacteria = a microscope; \
find the way in a dark cave = a torch; take a picture of the wedding = a camera; \
watch birds on a far tree = binoculars; see your own face = a mirror
garden: dig a hole = a spade; sprinkle the flowers = a watering can; gather fallen leaves = a rake; \
loosen the soil = a hoe; catch a trout = a fishing rod; scare off crows = a scarecrow
safety: lock the front door = a key; put out a fire = a fire extinguisher; light the candles = matches; \
cover a cut finger = a plaster; stay above water = a life jacket
"""

# Pleasant, unpleasant or bodily, and a feeling: what has happened to somebody who feels so.
FEELINGS = """
pleasant, proud: won the spelling contest; built a bookshelf without help; got the best mark in the class; \
scored the winning goal; painted a picture that hangs in the town hall; taught a little brother to read
pleasant, grateful: was lent an umbrella by a stranger; got help with a flat tyre; \
was given a seat on a crowded train; was brought flowers by the neighbours; got a lost wallet back with all the money
pleasant, excited: is going to the fair tomorrow; will open the birthday presents in a minute; \
is about to fly for the first time; waits for the favourite band to come on stage; \
starts a journey around the world today
pleasant, relieved: found the lost child in the crowd; caught the last train just in time; \
heard that the illness was harmless; passed an exam that seemed lost; saw that the house had survived the storm
pleasant, amused: heard a very funny joke; saw the kitten chase its own tail; watched the clowns at the circus; \
read a comic about a clumsy dog; saw the teacher with two different shoes
unpleasant, sad: buried the old dog; said goodbye to a best friend who moves away; \
lost the ring of a late grandmother; had to sell the family home; watched the last day of the holidays end
unpleasant, angry: was blamed for what somebody else had done; found the new car scratched by a neighbour; \
had a bicycle stolen; was pushed out of the queue; saw a brother break a toy on purpose
unpleasant, afraid: heard a stranger at the window at night; was chased by a bull; \
saw a snake beside the sleeping bag; has to walk alone through the dark woods; hears footsteps behind in the dark alley
unpleasant, ashamed: was caught telling a lie; cheated in a test and was found out; broke a promise to a friend; \
ruined the carpet of the host; forgot the birthday of a twin sister
unpleasant, lonely: eats every dinner alone in a new city; has nobody to play with; \
spends the holidays without any family; sits apart while the others dance; gets no letters from home
bodily, tired: stayed up all night; carried bricks the whole day; worked two shifts in a row; \
marched through the whole night; was woken by the baby every hour
bodily, hungry: skipped breakfast and lunch; has not eaten since yesterday; ran out of food on a long hike; \
smells fresh bread after a day without food; left the table before the meal came
bodily, thirsty: walked through the desert without water; ate a whole bag of salty crisps; played tennis in the heat; \
shovelled sand in the sun with an empty bottle; sang for hours without a drink
bodily, cold: fell into the icy lake; went out into the snow without a coat; slept in a hut without a stove; \
stood in the blizzard without gloves; waited for the bus in a freezing wind
bodily, ill: ate spoiled fish; drank sour milk; caught the flu; drank dirty water; \
has a high fever
"""

# At home, outdoors or at work: an activity and its steps, in order.
NEXT_STEPS = """
home: Making tea = boils some water = puts a tea bag into a cup = pours the hot water over the tea bag; \
Washing the dishes = fills the sink = rubs the plates with a sponge = puts the clean plates on the rack to dry; \
Frying an egg = heats butter in a pan = cracks an egg into the pan = waits until the white of the egg is firm; \
Making toast = cuts two slices of bread = puts the slices into the toaster = spreads butter on the hot toast; \
Brushing teeth = squeezes paste onto the brush = brushes for two minutes = rinses the mouth and spits out the foam; \
Wrapping a present = folds paper around the gift = fixes the paper with tape = ties a ribbon around the parcel; \
Painting a wall = covers the floor with sheets = dips the roller into the paint = rolls the paint onto the wall; \
Baking bread = kneads the dough = lets the dough rise in a bowl = puts the loaf into the oven; \
Doing the laundry = sorts the dirty clothes = runs the washing machine = hangs the wet clothes on the line; \
Changing a light bulb = switches off the lamp = unscrews the old bulb = screws in the new bulb; \
Having a bath = lets warm water into the tub = steps into the water = dries off with a towel; \
Ironing a shirt = plugs in the iron = lays the shirt flat on the board = presses the creases out of the sleeves; \
Putting a baby to bed = changes the nappy = lays the baby in the cot = sings a lullaby until the baby sleeps; \
Cooking noodles = brings salted water to the boil = drops the noodles into the pot = drains the noodles in a colander; \
Hanging a picture = marks a spot on the wall = drives a nail into the wall = hangs the frame on the nail; \
Sewing on a button = threads the needle = holds the button to the cloth = pulls the thread through the holes; \
Making a salad = washes the lettuce = slices the tomatoes = mixes everything with oil and vinegar; \
Lighting a fire = stacks logs in the fireplace = puts paper under the logs = holds a match to the paper; \
Making coffee = grinds the beans = puts the powder into the filter = pours hot water through the filter; \
Feeding the cat = takes a tin from the shelf = opens the tin = empties the tin into the bowl of the cat
outdoors: Planting a tree = digs a hole = sets the young tree into the hole = fills the hole with earth; \
Catching a fish = puts a worm on the hook = throws the line into the lake = reels in the line when something bites; \
Building a snowman = rolls a large ball of snow = sets a smaller ball on top = sticks in a carrot for the nose; \
Mending a flat tyre = takes the wheel off the bicycle = glues a patch on the hole = pumps air into the tyre; \
Washing the car = hoses down the car = rubs the car with soapy water = dries the roof and the doors with a cloth; \
Putting up a tent = spreads the cloth on the grass = puts up the poles = hammers the pegs into the ground; \
Flying a kite = waits for a good wind = runs with the kite = lets out more string as the kite rises; \
Riding a horse = puts the saddle on the horse = climbs into the saddle = takes the reins and rides off; \
Crossing the street = stops at the kerb = looks left and right = walks to the other side; \
Taking the bus = waits at the stop = gets on and buys a ticket = takes a seat by the window; \
Picking apples = leans a ladder against the tree = climbs the ladder with a basket = fills the basket with ripe fruit; \
Going down a slide = climbs the steps = sits down at the top = lets go and slides to the bottom; \
Rowing a boat = unties the boat from the pier = sits down and takes the oars = pulls the oars through the water; \
Mowing the lawn = fills the tank of the mower = starts the motor = pushes the mower across the grass; \
Walking the dog = takes the leash from its hook = clips the leash to the collar = leads the dog around the park; \
Making a campfire = gathers dry sticks = builds a ring of stones = lights the sticks inside the ring; \
Playing tennis = walks onto the court = throws the ball into the air = hits the ball over the net; \
Jumping into a pool = climbs the diving board = walks to the end of the board = leaps and splashes into the water; \
Filling the car = stops at the petrol pump = opens the cap of the tank = puts the nozzle into the tank; \
Sledging = pulls the sledge up the hill = sits down on the sledge = races down through the snow
work: Posting a letter = writes the address = sticks on a stamp = drops the envelope into the letter box; \
Paying at a shop = puts the goods on the counter = hears the price = hands over the money; \
Taking a photo = points the camera at the group = asks everybody to smile = presses the shutter; \
Setting a broken arm = looks at the swollen arm = takes an X-ray of the bone = puts the arm into plaster; \
Giving a lesson = greets the pupils = writes a sum on the board = asks a pupil for the result; \
Cutting hair = puts a cape around the customer = wets and combs the hair = snips off the ends with scissors; \
Fighting a fire = jumps off the fire engine = unrolls the hose = sprays water on the flames; \
Laying bricks = mixes the mortar = spreads mortar on the wall = sets a brick into the mortar; \
Printing a page = opens the document = loads paper into the tray = sends the document to the printer; \
Milking a cow = carries a bucket into the stable = sits down beside the cow = squeezes milk into the bucket; \
Delivering pizza = stacks the boxes on the scooter = drives to the address = rings the bell and hands over the boxes; \
Conducting an orchestra = steps onto the platform = raises the baton = gives the sign to the violins to begin; \
Judging a race = lines up the runners = fires the starting pistol = notes who crosses the finish first; \
Pulling a tooth = numbs the gum = grips the tooth with pliers = lifts the tooth out of the jaw; \
Landing an aeroplane = lowers the wheels = lines up with the runway = touches down and brakes; \
Borrowing a book = finds the book on the shelf = takes it to the desk = shows the library card; \
Serving a guest = brings the menu = writes down the order = carries the food to the table; \
Casting a bell = melts the bronze = pours the bronze into the mould = breaks the mould when the metal is cold; \
Making a phone call = looks up the number = dials the number = waits for somebody to answer; \
Giving a speech = walks to the microphone = unfolds the notes = speaks to the audience
"""

# Thing or container, and a size: what has it. A thing of a size does not fit into a container of a smaller size.
SIZES = """
thing 2: book; shoe; teapot; football; lamp; melon; hammer; bottle; hat; brick
thing 3: chair; guitar; drum; cello; armchair; ladder; scooter; bicycle; barrel; mattress
thing 4: sofa; piano; wardrobe; bathtub; motorcycle; bed; billiard table; canoe; horse; bookcase
thing 5: bus; elephant; tractor; yacht; truck; whale; helicopter; crane; caravan; tank
container 1: matchbox; pocket; envelope; wallet; ring box; thimble; purse; jam jar
container 2: drawer; handbag; lunch box; shoebox; letter box; bucket; basket; satchel
container 3: suitcase; car boot; fridge; locker; wheelbarrow; chest; crate; trunk
container 4: garage; shed; lift; van; attic; cabin; hallway; cellar
"""

# A kind: things of it.
KINDS = """
a bird: sparrow; eagle; owl; pigeon; swan; robin; crow; stork
a fish: salmon; trout; cod; tuna; herring; carp; pike; sardine
an insect: ant; bee; fly; wasp; beetle; moth; cricket; mosquito
a tree: oak; birch; pine; willow; maple; beech; fir; poplar
a fruit: apple; pear; banana; cherry; plum; grape; peach; lemon
a vegetable: carrot; cabbage; potato; onion; leek; spinach; turnip; broccoli
a tool: hammer; saw; chisel; screwdriver; pliers; wrench; drill; axe
a vehicle: car; bus; truck; tractor; van; motorcycle; tram; taxi
a musical instrument: violin; piano; flute; trumpet; guitar; harp; clarinet; cello
a piece of clothing: shirt; coat; skirt; sweater; jacket; dress; trousers; blouse
a metal: iron; copper; silver; gold; lead; tin; zinc; platinum
a drink: tea; coffee; lemonade; milk; beer; wine; cider; cocoa
"""

# A material: things that are usually made of it.
MATERIALS = """
glass: a window pane; a jam jar; a mirror; a test tube; a lens; a light bulb
wool: a knitted scarf; a thick winter jumper; a ball of yarn; a pair of mittens
leather: a saddle; a wallet; a pair of riding boots; a belt; a whip; a baseball glove
paper: a newspaper; an envelope; a page of a book; a birthday card; a magazine; a receipt
stone: a castle wall; a gravestone; a pyramid; a millstone; a cobbled street; an ancient temple
steel: a railway track; the blade of a knife; the anchor of a ship; a nail; a paper clip; a bridge cable
wood: a matchstick; a log cabin; a chopping board; an oar; a broomstick; a rocking horse
rubber: a car tyre; an eraser; a bouncing ball; a hot-water bottle; a balloon; the sole of a trainer
cotton: a T-shirt; a bed sheet; a pair of jeans; a tea towel; a bandage; a handkerchief
clay: a brick; a flower pot; a roof tile; an ancient jug
plastic: a toothbrush; a drinking straw; a shampoo bottle; a toy building block; a yoghurt cup; a bin bag
wax: a candle; a crayon; a honeycomb; the seal of an old letter
flour: bread; a pancake; noodles; the crust of a pie; a biscuit; a cake
milk: cheese; butter; yoghurt; whipped cream
"""

# A place: what is found there.
PLACES = """
in the sea: a whale; a shark; an octopus; a jellyfish; a coral reef; a seahorse
in a forest: a woodpecker; moss; wild mushrooms; a fox's den; fallen pine cones; a badger
in a kitchen: an oven; a frying pan; a bread knife; a spice rack; a rolling pin; a whisk
in a hospital: a surgeon; a midwife; an operating table; a stretcher; an X-ray machine; a ward for the sick
in a classroom: a pupil; a blackboard; exercise books; a spelling lesson; a times table on the wall; a teacher
on a farm: a cow shed; a milking machine; a haystack; a ploughed field; a pigsty; a hen house
at an airport: a runway; a pilot; a control tower; a boarding gate; a luggage belt; a parked jet
in a desert: a cactus; a camel; sand dunes; a scorpion; an oasis; a rattlesnake
in a bathroom: a shower; a toothbrush; a bath mat; a towel rail; a bar of soap; a washbasin
in space: a comet; a satellite; a galaxy; an asteroid; an astronaut; a distant planet
in a theatre: an actor; a red curtain; an orchestra pit; a stage; an audience; a prompter
in an office: a printer; a filing cabinet; a stapler; a meeting room; a swivel chair; a paper shredder
in a church: an altar; a priest; a baptismal font; pews; stained glass; a pulpit
on a playground: a swing; a seesaw; a sandpit; a slide; a climbing frame; a merry-go-round
"""

FACTS = {
    "properties": PROPERTIES,
    "uses": USES,
    "feelings": FEELINGS,
    "next_steps": NEXT_STEPS,
    "sizes": SIZES,
    "kinds": KINDS,
    "materials": MATERIALS,
    "places": PLACES,
}
"""The facts by task."""


def read_facts(task: str) -> dict[str, tuple[str, ...]]:
    """All facts of a task by group.

    Args:
        task: A name of `FACTS`.
    """
    lines = (line.partition(": ") for line in FACTS[task].strip().splitlines())
    return {group: tuple(fact.strip() for fact in facts.split(";")) for group, _, facts in lines}


def split_facts(task: str, split: Split) -> Mapping[str, tuple[str, ...]]:
    """Half of the facts of every group, always the same ones: those to train on, or the others; 3 of 5 are trained on.

    Args:
        task: A name of `FACTS`.
        split: Which half.
    """
    found = {}
    for group, facts in read_facts(task).items():
        order = np.argsort(Stream("generated facts", task, group).array(len(facts)), kind="stable")
        half = (len(facts) + 1) // 2
        found[group] = tuple(facts[place] for place in sorted(order[:half] if split == "train" else order[half:]))
    return found
