"""What the operator wrote: read with line and column, validated in one go, resolved to plain data.

``reader``, ``yaml_reader``  text to values that know their place (``tree``)
``schema``, ``types``        every key, its default, unit and help text
``load``                     file to a checked configuration, or to every problem at once (``problems``, ``explain``)
``validate``, ``machine``    how the values fit together; what this machine lacks for them
``effect``                   what this version reads and does not act on yet
``resolve``                  the frozen data that the rest of the program uses
``jsonschema``               the same keys for editors
"""
