"""What every byte of a file means. No torch; nothing here knows a network. docs/FORMAT.md is the index.

bitstream               the container: head, tile directory, sections, payloads
levels                  quality, metric mix and bits: the operating point
tiles                   boxes, and how a picture is cut in tiles
adapt_section           ADAPT: changes to the decoder, patch by patch
quality_map_section     QUALITY_MAP: parts that are coded coarser than the rest
alternatives_section    ALTERNATIVES: other conditions for receivers who want another metric
packed                  bits and bytes of both, and how they are read
alpha_section           ALPHA: the alpha plane without loss
lossy_alpha_section     LOSSY_ALPHA: the alpha plane with loss
metadata_sections       XMP and DPI
"""
