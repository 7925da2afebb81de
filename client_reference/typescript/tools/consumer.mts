/** What an app imports, compiled against the built package alone, without the settings of this one. */

import { type Options, type Status, TidemarkError, tidemark } from "@tidemark/client";
import { TidemarkProvider, useSyncStatus } from "@tidemark/client/react";
import { pushInBackground } from "@tidemark/client/service-worker";

interface Note {
  id: string;
  text: string;
}

interface Tables {
  notes: { row: Note; insert: Partial<Note>; update: Partial<Note>; key: string };
}

export function app(options: Options<Tables>): Promise<Note[]> {
  pushInBackground(options);
  return tidemark(options).notes.toArray();
}

export const parts: [typeof TidemarkProvider, () => Status, typeof TidemarkError] = [
  TidemarkProvider,
  useSyncStatus,
  TidemarkError,
];
