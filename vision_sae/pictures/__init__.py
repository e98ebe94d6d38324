"""Pictures: safe decoding of untrusted bytes, and folders of captioned pictures."""
