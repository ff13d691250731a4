"""What the page says beside tables and figures."""

RESULTS = (
    "HR@k is the share of held-out items among the first k places. NDCG@k and MRR@k also count how far up they are. "
    "The highest value of a column is bold. A click on a column head sorts."
)
PROTOCOLS_DIFFER = (
    "These runs do not share one protocol (split, ranking, mask or withheld items): their numbers do not compare. The "
    "top of the page and the settings say what differs."
)
WITHHELD = "Withheld items have no interaction in training."
GROUPS = (
    "Test targets by how often the item occurs in training, last phase of each model, history masked. The small number "
    "below a group is its number of targets; a group with few targets is a rough estimate. Lines on bars: standard "
    "deviation over seeds, where a model has several."
)
NO_GROUPS = "These runs have no results by frequency: they are kept for runs with one target per row and full ranking."
BINS = (
    "Bins hold about equal shares of the training interactions: bin 1 has few, frequent items, the last many rare ones."
)
CURVES = (
    "Loss and validation result after each epoch. The large dot is the epoch whose weights are kept. Losses of "
    "different models and phases need not have one scale."
)
NO_CURVES = "These runs keep no validation result of each epoch."
INSIDE = "What a model's item vectors look like, and how its experts are weighed."
NO_INSIDE = "These runs keep no diagnostics of their item spaces."
GATE = (
    "How the gate scales the score of each expert, by frequency of the item. Experts' scores differ in size, so a "
    "weight is not the expert's part of the result."
)
ALIGNMENT = (
    "Maximum mean discrepancy between adapted text vectors and ID vectors, before alignment and in phase {phase}. "
    "Smaller means more alike. Values of different kernels do not compare."
)
KEPT = (
    "Neighbours kept: share of the 10 nearest items that are the same as in the ID space of the first phase. "
    "\u03c4: Kendall's tau between distances in that space and in the present one; 1 keeps the order, 0 nothing of it. "
    "The last columns: share of the 10 nearest items that two spaces have in common."
)
SHAPE = (
    "Anisotropy is the mean cosine of two items: near 0, vectors point everywhere; near 1, all one way. The spectrum "
    "shows how the variance spreads over axes: a flat line uses all of them, a steep one few."
)
PLANES = (
    "A sample of {n:,} items on the two main axes of each space, seed {seed}. Colour is the train frequency, on a "
    "logarithmic scale. Where colours lie apart, an item's place goes with its frequency."
)
ITEMS = (
    "Items by NDCG@10 in %, over the test rows whose target they are, last phase, history masked. With few rows an "
    "item's place is partly luck."
)
NO_ITEMS = "These runs keep no list of items."
SETTINGS = "What was set for each run, the defaults of all other keys, and a command that trains it again."
NO_SETTINGS = "The folder holds no settings."
FOOTER = "Everything on this page comes from the folders of its runs. The page loads nothing."
