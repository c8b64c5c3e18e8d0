// Original file: proto/containerd/introspection.proto

import type { Status as _containerd_services_introspection_v1_Status, Status__Output as _containerd_services_introspection_v1_Status__Output } from '../../../../containerd/services/introspection/v1/Status.ts';

export interface Plugin {
  'type'?: (string);
  'id'?: (string);
  'exports'?: ({[key: string]: string});
  'capabilities'?: (string)[];
  'initErr'?: (_containerd_services_introspection_v1_Status | null);
}

export interface Plugin__Output {
  'type': (string);
  'id': (string);
  'exports': ({[key: string]: string});
  'capabilities': (string)[];
  'initErr': (_containerd_services_introspection_v1_Status__Output | null);
}
