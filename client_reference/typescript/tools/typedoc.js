/** For typedoc: what a class inherits as statics from Dexie is Dexie's to document. */

import { Converter, ReflectionKind } from "typedoc";

export function load(app) {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    for (const property of project.getReflectionsByKind(ReflectionKind.Property)) {
      if (property.flags.isStatic && property.inheritedFrom) project.removeReflection(property);
    }
  });
}
