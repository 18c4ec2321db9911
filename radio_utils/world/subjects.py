"""What the instructions that a chat model writes are about: a list made for this book, far from one another on purpose.

A model that is asked for "an instruction" again and again writes the same few. A subject in the system line gives variety.
"""

from __future__ import annotations

SUBJECTS = (
    # numbers and shapes
    "fractions and percentages", "prime numbers", "the area of a room", "probability and dice", "reading a bar chart",
    "compound interest", "the calendar and leap years", "units of measurement",
    # nature
    "the water cycle", "earthquakes", "volcanoes", "clouds and rain", "tides", "rivers and floods", "deserts", "glaciers",
    "soil and compost", "mushrooms", "oak trees", "bees and pollination", "migratory birds", "owls", "whales", "sharks",
    "spiders", "ants", "horses", "cats", "sheepdogs", "coral reefs", "photosynthesis", "seeds and how they travel",
    # the body
    "sleep", "the heart", "bones and joints", "vitamins", "vaccines", "allergies", "hearing", "eyesight", "stretching",
    "first aid for burns", "brushing teeth",
    # matter and machines
    "magnets", "batteries", "solar panels", "wind turbines", "bridges", "elevators", "bicycles", "steam engines",
    "refrigerators", "clocks", "telescopes", "microscopes", "glass", "steel", "concrete", "paper making", "soap",
    "the colours of the rainbow", "sound and echoes", "gravity", "the Moon", "comets", "the planet Mars", "satellites",
    # computing
    "passwords", "e-mail", "spreadsheets", "sorting a list in Python", "loops in programming", "web browsers", "backups",
    "databases", "search engines", "file formats for images",
    # food
    "baking bread", "cooking rice", "vegetable soup", "pancakes", "cheese", "coffee", "green tea", "olive oil", "spices",
    "fermented cabbage", "a packed lunch",
    # home and daily life
    "house plants", "painting a wall", "washing wool", "a leaking tap", "saving electricity", "moving to a new flat",
    "packing a suitcase", "train journeys", "road signs", "sewing on a button", "a vegetable garden", "a shopping list",
    # work and money
    "job interviews", "thank-you letters", "a household budget", "bookkeeping", "meetings", "customer complaints",
    "opening a café", "insurance",
    # society and the past
    "public libraries", "elections", "courts of law", "taxes", "ancient Egypt", "the Roman roads", "the Silk Road",
    "the printing press", "the Vikings", "medieval castles", "the Industrial Revolution", "lighthouses", "postage stamps",
    # language, arts and play
    "synonyms", "punctuation", "writing a poem", "fairy tales", "detective stories", "the violin", "the piano",
    "choirs", "watercolours", "photography", "pottery", "chess", "swimming", "hiking in the mountains", "football",
    "learning Spanish",
)  # fmt: skip
