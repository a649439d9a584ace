"""What every byte of a file means. Standard library and numpy only; nothing here knows a network.

bitstream           the container: head, tile directory, sections, payloads
levels              quality, metric mix and bits: the operating point
tiles               boxes, and how a picture is cut in tiles
adapt_section       ADAPT: changes to the decoder, patch by patch
"""
