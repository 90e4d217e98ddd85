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
    "Grandma, Uncle Ray, Dr. Weber, Mrs. Lind, "
    "Adam, Agnes, Alina, Amir, Andre, Astrid, Beatriz, Boris, Bruno, Camille, Cedric, Clara, Dmitri, Edith, "
    "Eric, Esther, Farid, Fiona, Gavin, Gita, Hanna, Hugo, Ibrahim, Irene, Isaac, Ivy, Jamal, Joana, Karim, "
    "Kirsten, Lars, Leila, Lorenzo, Magda, Malik, Marcus, Nadia, Nils, Oscar, Paula, Quentin, Rachel, Ravi, "
    "Sabine, Simon, Tamara, Theo, Uma, Vera, Walter, Xavier, Yara, Zeynep, Grandpa, Aunt Ruth, Aunt Mabel, Uncle "
    "Joe, Uncle Henrik, Cousin Pia, Mr. Brown, Mr. Castillo, Mrs. Adeyemi, Dr. Novak",
    "Bjorn, Imani, Lucia, Mateo, Priya, Rowan, Sunniva, Tariq, Ottilie, Aunt Carol, Mr. Okafor",
)
SONGS = _words(
    "Paper Lanterns, Slow River, Tin Roof, Seventeen Sparrows, The Long Way Home, Copper Sky, Salt on the Window, "
    "Night Bus, Marigold, Hold the Door, Winter Coat, Borrowed Shoes, Lighthouse Keeper, Half a Moon, Dust and "
    "Honey, Second Floor, Postcards, A Quiet Kind of Thunder, Orange Peel, Last Train North, Glass Garden, Tell "
    "the Bees, Under the Viaduct, "
    "Blackbird Hill, Coffee at Dawn, The Tallest Tree, Broken Compass, Rain on Tuesday, Little Engines, A "
    "Letter to June, Silver Thread, Mountain Radio, The Baker's Daughter, Empty Harbour, Feather and Stone, Green"
    " Bicycle, Saturday Ghosts, Hummingbird, Kitchen Floor Waltz, Lanterns Out, Map of You, Northbound, Old "
    "Piano, Pocket Change, Quicksand, Red Umbrella, Sleepwalker, Thin Ice, Umber, Velvet Stairs, Whistling Past, "
    "Yesterday's Paper, Zero Gravity, Amber Road, Cold Tea, Falling Upward",
    "Violet Hour, Nine Bridges, The Clockmaker, Wet Cement, Kite Weather, Harbor Lights, Small Kingdoms, Ink",
)
ARTISTS = _words(
    "Nora Vale, the Quiet Engines, Otis Marlow, Sister Juniper, the Paper Boats, Delia Crane, Blue Tractor, Ivo "
    "Santos, the Night Gardeners, Hazel Finch, Cardboard Kings, Mira Sol, Union of Owls, Jack Pemberton, Velvet "
    "Anchor, Lena Oak, "
    "the Wooden Spoons, Clara Benedict, Fox and Ferry, Milo Strand, the Last Commuters, Anouk Leclair, Brass "
    "Pigeon, Dorian Wells, the Lemon Trees, Ebba Lund, Felix Amadi, the Gentle Giants, Holly Ashworth, Iron "
    "Teacup, June Okada, the Kingfishers, Luca Ferrante, Moonlit Motel, Nina Castle, the Old Harbour Band, Petra "
    "Vance, Rusty Gate, Sana Malik, the Tin Soldiers, Walter Grove",
    "the Salt Brothers, Amara Reed, Green Umbrella, Casper Dahl, Northern Attic, Tilda Moss",
)
GENRES = _words(
    "jazz, blues, soul, reggae, techno, folk, classical, opera, funk, salsa, country, piano, lullaby, rock",
    "bluegrass, ska, gospel, flamenco, swing",
)
TIMER_LABELS = _words(
    "pasta, eggs, laundry, nap, tea, bread, rice, pizza, workout, cookies, soup, chicken, meditation, face mask, "
    "beans, potatoes, cake, roast, stew, coffee, dishwasher, homework, shower, break, game, hair dye, plank, "
    "lentils, quiche, fish, dough, run, reading, pancakes",
    "lasagna, dumplings, yoga, muffins, stretching",
)
CITIES = _words(
    "Oslo, Lima, Paris, Nairobi, Kyoto, Boston, Lisbon, Cairo, Berlin, Toronto, Mumbai, Rome, Dublin, Seoul, Cape "
    "Town, New York, Buenos Aires, Vienna, Athens, Denver, Madrid, Chicago, "
    "Prague, Warsaw, Helsinki, Zurich, Munich, Hamburg, Geneva, Milan, Naples, Porto, Seville, Valencia, "
    "Glasgow, Edinburgh, Belfast, Cardiff, Manchester, Brussels, Antwerp, Rotterdam, Stockholm, Copenhagen, "
    "Reykjavik, Budapest, Sofia, Bucharest, Istanbul, Ankara, Beirut, Dubai, Delhi, Dhaka, Bangkok, Hanoi, "
    "Jakarta, Manila, Tokyo, Osaka, Shanghai, Taipei, Sydney, Melbourne, Perth, Auckland, Accra, Lagos, Dakar, "
    "Tunis, Casablanca, Johannesburg, Montreal, Vancouver, Calgary, Seattle, Portland, Phoenix, Dallas, Houston, "
    "Miami, Atlanta, Philadelphia, Los Angeles, San Francisco, Las Vegas, Santiago, Bogota, Caracas, Montevideo, "
    "Salvador, Mexico City",
    "Tbilisi, Quito, Bergen, Adelaide, San Diego, Krakow, Havana",
)
LISTS = _words(
    "shopping, packing, party, hardware, camping, grocery, birthday, pharmacy, gift, "
    "travel, weekend, wedding, cleaning, beach, bakery, holiday",
    "picnic, garden, school",
)
ITEMS = _words(
    "eggs, milk, bananas, batteries, paper towels, rice, lemons, candles, light bulbs, socks, apples, dog food, "
    "onions, sunscreen, tea bags, balloons, nails, matches, potatoes, olive oil, toothpaste, envelopes, carrots, "
    "coffee filters, napkins, tent pegs, bin bags, oranges, dish soap, yoghurt, "
    "butter, cheese, flour, sugar, salt, honey, spinach, cucumbers, tomatoes, garlic, ginger, mushrooms, "
    "lettuce, grapes, pears, peaches, noodles, cereal, chocolate, orange juice, apple juice, ham, tofu, salmon, "
    "mustard, vinegar, cat food, shampoo, soap, tissues, plasters, string, glue, paint, a hammer, a torch, a map,"
    " a sleeping bag, gloves, ribbons, paper plates, straws, crisps, lemonade, ice cubes, charcoal, insect spray,"
    " cough drops, hand cream, wrapping paper",
    "mangoes, screws, oat milk, tennis balls, hair ties, walnuts, duct tape, avocados, ear plugs",
)
COUNTED_ITEMS = _words(
    "eggs, bananas, batteries, lemons, candles, light bulbs, apples, onions, balloons, envelopes, potatoes, "
    "carrots, oranges, cans of tomatoes, bottles of water, bags of flour, boxes of tea, bars of chocolate, rolls "
    "of tape, loaves of bread, pairs of socks, tent pegs, "
    "tomatoes, cucumbers, pears, peaches, onion rolls, pencils, notebooks, paper plates, forks, towels, "
    "blankets, bottles of juice, bottles of vinegar, cartons of milk, jars of jam, packets of seeds, bags of "
    "rice, tins of tuna, sheets of paper, balls of string",
    "mangoes, screws, jars of honey, tennis balls, packs of gum, avocados, tins of paint",
)
TASKS = _words(
    "call the dentist, water the plants, take out the trash, feed the cat, pay the rent, book the train tickets, "
    "pick up the dry cleaning, check the oven, take my vitamins, clean the fridge, return the library books, lock "
    "the back door, charge the camera, renew my passport, walk the dog, defrost the chicken, send the invoice, "
    "cancel the gym membership, change the bed sheets, bring in the washing, buy stamps, print the boarding "
    "passes, sweep the yard, wrap the presents, move the car, back up my laptop, order more coffee, sign the "
    "permission slip, "
    "clean the windows, mop the kitchen floor, call my brother, call the bank, book a table, rent a van, fix "
    "the gate, paint the fence, feed the fish, feed the rabbits, brush the dog, mow the lawn, rake the leaves, "
    "pay the electricity bill, renew the insurance, buy flowers, buy a birthday card, email the teacher, email my"
    " boss, take the bins in, take the cake out, turn the compost, bleed the radiators, check the tyres, check "
    "the post, drop off the keys, pack my suitcase, practise the violin, stretch, drink some water",
    "empty the dishwasher, collect the parcel, oil the bike chain, iron my shirt, prune the roses, vote, write to "
    "the landlord, refill the bird feeder, descale the kettle",
)
EVENTS = _words(
    "the parent meeting, the dentist appointment, the piano lesson, the team call, my prescription, the football "
    "match, the phone bill, the vet appointment, choir practice, the job interview, "
    "the staff meeting, the concert, the swimming lesson, the haircut, the eye test, the rehearsal, the video "
    "call, the water bill, the rent, the delivery, the birthday party, the dance class, the interview, the "
    "inspection, the flight",
    "the book club, the blood test, the school play, the tax return",
)
MESSAGES = _words(
    "I'm running late, dinner is ready, the package arrived, I'll bring dessert, the meeting was moved, my phone "
    "is almost dead, we are out of milk, the keys are under the mat, I can't make it tonight, the train is "
    "delayed, the plumber is here, I got the job, the movie starts soon, we landed safely, your sister called, I "
    "left my wallet at home, the car needs fuel, practice was cancelled, I found your scarf, the cake turned out "
    "great, everyone is waiting, I'm stuck in traffic, the power is back, we saved you a seat, the baby is "
    "asleep, I need a ride, the shop closes soon, it's my turn to cook, the door code has changed, I'm at the "
    "station, "
    "the kettle is broken, I'm in the garden, the guests have left, we need more chairs, lunch is at noon, the "
    "bus is full, I passed the exam, the cat is back, it's raining here, the parcel is for you, the lift is out "
    "of order, I'm at the dentist, we are lost, the door is open, I forgot my umbrella, the shop is shut, the "
    "match was postponed, I booked the hotel, the bread is in the oven, my battery is low, the road is closed, "
    "the show starts at the usual time, the kids are in bed, I'm nearly there",
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
    "water my plants, leave the keys with the neighbour, bring the blue folder, keep the receipt, "
    "bring some ice, lock the shed, feed the chickens, call the office, order a pizza, close the windows, bring"
    " a torch, check the tickets, print the form, hold the lift, empty the bin, buy some milk, bring the blue "
    "bag, return my call, share the photos, set the table",
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
