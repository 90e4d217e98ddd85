"""The words that fill the open slots of a command.

Every list comes in two parts. Train and validation draw only from the first; the test split draws from both, so that
it also asks whether an unseen name, song or room is copied correctly. The songs, bands and messages were made up.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A word list whose second part only the test split may use."""

    everywhere: tuple[str, ...]
    only_in_test: tuple[str, ...] = ()


def _words(everywhere: str, only_in_test: str = "") -> Words:
    def split(text: str) -> tuple[str, ...]:
        return tuple(" ".join(part.split()) for part in text.split(",") if part.strip())

    return Words(split(everywhere), split(only_in_test))


ROOMS = _words(
    "kitchen, bedroom, living room, hallway, bathroom, study, garage, attic, dining room, nursery, guest room, "
    "basement, sunroom, laundry room, office, conservatory",
    "library, cellar, playroom, workshop, music room, loft",
)
NAMES = _words(
    "Maria, Tom, Aisha, Ben, Chloe, Daniel, Elena, Felix, Grace, Hassan, Ines, Jonas, Keiko, Liam, Mina, Noah, "
    "Olga, Pedro, Rosa, Samir, Tessa, Viktor, Wendy, Yusuf, Zoe, Anna, Carlos, Dora, Emil, Fatima, Mum, Dad, "
    "Grandma, Uncle Ray, Dr. Weber, Mrs. Lind",
    "Bjorn, Imani, Lucia, Mateo, Priya, Rowan, Sunniva, Tariq, Ottilie, Aunt Carol, Mr. Okafor",
)
SONGS = _words(
    "Paper Lanterns, Slow River, Tin Roof, Seventeen Sparrows, The Long Way Home, Copper Sky, Salt on the Window, "
    "Night Bus, Marigold, Hold the Door, Winter Coat, Borrowed Shoes, Lighthouse Keeper, Half a Moon, Dust and "
    "Honey, Second Floor, Postcards, A Quiet Kind of Thunder, Orange Peel, Last Train North, Glass Garden, Tell "
    "the Bees, Under the Viaduct",
    "Violet Hour, Nine Bridges, The Clockmaker, Wet Cement, Kite Weather, Harbor Lights, Small Kingdoms, Ink",
)
ARTISTS = _words(
    "Nora Vale, the Quiet Engines, Otis Marlow, Sister Juniper, the Paper Boats, Delia Crane, Blue Tractor, Ivo "
    "Santos, the Night Gardeners, Hazel Finch, Cardboard Kings, Mira Sol, Union of Owls, Jack Pemberton, Velvet "
    "Anchor, Lena Oak",
    "the Salt Brothers, Amara Reed, Green Umbrella, Casper Dahl, Northern Attic, Tilda Moss",
)
GENRES = _words(
    "jazz, blues, soul, reggae, techno, folk, classical, opera, funk, salsa, country, piano, lullaby, rock",
    "bluegrass, ska, gospel, flamenco, swing",
)
TIMER_LABELS = _words(
    "pasta, eggs, laundry, nap, tea, bread, rice, pizza, workout, cookies, soup, chicken, meditation, face mask",
    "lasagna, dumplings, yoga, muffins, stretching",
)
CITIES = _words(
    "Oslo, Lima, Paris, Nairobi, Kyoto, Boston, Lisbon, Cairo, Berlin, Toronto, Mumbai, Rome, Dublin, Seoul, Cape "
    "Town, New York, Buenos Aires, Vienna, Athens, Denver, Madrid, Chicago",
    "Tbilisi, Quito, Bergen, Adelaide, San Diego, Krakow, Havana",
)
LISTS = _words(
    "shopping, packing, party, hardware, camping, grocery, birthday, pharmacy, gift", "picnic, garden, school"
)
ITEMS = _words(
    "eggs, milk, bananas, batteries, paper towels, rice, lemons, candles, light bulbs, socks, apples, dog food, "
    "onions, sunscreen, tea bags, balloons, nails, matches, potatoes, olive oil, toothpaste, envelopes, carrots, "
    "coffee filters, napkins, tent pegs, bin bags, oranges, dish soap, yoghurt",
    "mangoes, screws, oat milk, tennis balls, hair ties, walnuts, duct tape, avocados, ear plugs",
)
COUNTED_ITEMS = _words(
    "eggs, bananas, batteries, lemons, candles, light bulbs, apples, onions, balloons, envelopes, potatoes, "
    "carrots, oranges, cans of tomatoes, bottles of water, bags of flour, boxes of tea, bars of chocolate, rolls "
    "of tape, loaves of bread, pairs of socks, tent pegs",
    "mangoes, screws, jars of honey, tennis balls, packs of gum, avocados, tins of paint",
)
TASKS = _words(
    "call the dentist, water the plants, take out the trash, feed the cat, pay the rent, book the train tickets, "
    "pick up the dry cleaning, check the oven, take my vitamins, clean the fridge, return the library books, lock "
    "the back door, charge the camera, renew my passport, walk the dog, defrost the chicken, send the invoice, "
    "cancel the gym membership, change the bed sheets, bring in the washing, buy stamps, print the boarding "
    "passes, sweep the yard, wrap the presents, move the car, back up my laptop, order more coffee, sign the "
    "permission slip",
    "empty the dishwasher, collect the parcel, oil the bike chain, iron my shirt, prune the roses, vote, write to "
    "the landlord, refill the bird feeder, descale the kettle",
)
EVENTS = _words(
    "the parent meeting, the dentist appointment, the piano lesson, the team call, my prescription, the football "
    "match, the phone bill, the vet appointment, choir practice, the job interview",
    "the book club, the blood test, the school play, the tax return",
)
MESSAGES = _words(
    "I'm running late, dinner is ready, the package arrived, I'll bring dessert, the meeting was moved, my phone "
    "is almost dead, we are out of milk, the keys are under the mat, I can't make it tonight, the train is "
    "delayed, the plumber is here, I got the job, the movie starts soon, we landed safely, your sister called, I "
    "left my wallet at home, the car needs fuel, practice was cancelled, I found your scarf, the cake turned out "
    "great, everyone is waiting, I'm stuck in traffic, the power is back, we saved you a seat, the baby is "
    "asleep, I need a ride, the shop closes soon, it's my turn to cook, the door code has changed, I'm at the "
    "station",
    "the dog ate my shoes, we won the match, I missed the bus, the tickets are sold out, my flight was rebooked, "
    "the heating is broken, I'm on my way, your parcel is at my place, the concert was wonderful",
)
GREETINGS = _words(
    "happy birthday, good luck with the exam, see you at the party, thank you for the flowers, don't wait up for "
    "me, congratulations on the new house, sleep well, get well soon",
    "welcome home, safe travels, merry Christmas",
)
FAVOURS = _words(
    "bring the charger, call me back, buy some bread, pick up the kids, open the gate, send me the photos, wait "
    "outside, bring an umbrella, check the mailbox, save me a slice, turn off the oven, meet me at the cafe, "
    "water my plants, leave the keys with the neighbour, bring the blue folder, keep the receipt",
    "feed the hamster, bring a jumper, sign for the parcel, hide the presents, bring the spare key",
)

# Closed lists: these words mean a fixed value, whatever the split.
COLORS = ("red", "blue", "green", "purple", "orange", "yellow", "pink", "white", "turquoise")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
REPEATS = {"every day": "daily", "every weekday": "weekdays", "on weekdays": "weekdays", "on weekends": "weekends"}

# unit code -> (singular, plural, ...): the code is what the call carries, the words are what people say
UNITS = {
    "length": {
        "km": ("kilometer", "kilometers"), "mi": ("mile", "miles"), "m": ("meter", "meters"),
        "ft": ("foot", "feet"), "cm": ("centimeter", "centimeters"), "in": ("inch", "inches"),
    },
    "mass": {
        "kg": ("kilogram", "kilograms", "kilo", "kilos"), "lb": ("pound", "pounds"),
        "g": ("gram", "grams"), "oz": ("ounce", "ounces"),
    },
    "volume": {"l": ("liter", "liters"), "gal": ("gallon", "gallons"), "cup": ("cup", "cups")},
}  # fmt: skip
