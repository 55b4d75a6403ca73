import { DialogHost } from "./parts/dialog";
import { KeyForm } from "./key";
import { listenToKeys } from "./keys";
import { Toasts } from "./parts/toasts";
import { Top } from "./parts/top";
import { route } from "./route";
import { link, trouble } from "./state/watch";
import { ClusterView } from "./views/cluster";
import { DeploymentsView } from "./views/deployments";
import { PlaygroundView } from "./views/playground";
import { RequestsView } from "./views/requests";

listenToKeys();

export function App() {
  return (
    <>
      <Top />
      <main class="main">
        <KeyForm />
        <Lost />
        <View />
      </main>
      <DialogHost />
      <Toasts />
    </>
  );
}

function View() {
  switch (route.value.place) {
    case "cluster":
      return <ClusterView />;
    case "deployments":
      return <DeploymentsView chosen={route.value.id} />;
    case "requests":
      return <RequestsView chosen={route.value.id} />;
    case "playground":
      return <PlaygroundView deployment={route.value.id} />;
  }
}

function Lost() {
  if (link.value !== "lost") return null;
  return (
    <p class="note bad lost" role="status">
      No word from the control plane; this is how things were. {trouble.value}
    </p>
  );
}
