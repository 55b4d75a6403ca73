import { deployments, requestId } from "../api";
import { plural } from "../format";
import { Confirm } from "../parts/dialog";
import { go } from "../route";
import { refresh } from "../state/catalog";
import { ofDeployment } from "../state/summary";

export function DeleteDialog({ name }: { name: string }) {
  const sum = ofDeployment(name).value;
  const requests = (sum?.inFlight ?? 0) + (sum?.queued ?? 0);
  return (
    <Confirm
      title={`Delete ${name}?`}
      verb="Delete"
      dangerous
      action={async () => {
        await deployments.deleteDeployment({ requestId: requestId(), name });
        go("deployments");
        await refresh();
      }}
    >
      <p>
        {requests > 0 ? `Its ${plural(requests, "request")} are cancelled and its ` : "Its "}
        instances are stopped. Weights stay in the tiers until something else needs the room.
      </p>
    </Confirm>
  );
}
