"""What a sidecar does for the application beside it: enters it in the registries, and takes it out in time.

`Sidecar` has one `Entry` for each section `register`, and each of these has one `Seat` in each registry. What
is sent to webhooks is decided in `notice` and sent by `webhook`.
"""

from proxy.sidecar.places import places_of as places_of
from proxy.sidecar.seat import Place as Place
from proxy.sidecar.sidecar import Sidecar as Sidecar
