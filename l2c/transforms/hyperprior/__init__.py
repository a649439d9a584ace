"""g_a and g_s of CompressAI's codecs (Minnen2018, Cheng2020 and their cousins), with OML's modulators in g_s."""
