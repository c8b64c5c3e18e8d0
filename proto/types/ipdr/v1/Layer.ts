// Original file: proto/ipdr/agent.proto

import type { Timestamp as _google_protobuf_Timestamp, Timestamp__Output as _google_protobuf_Timestamp__Output } from '../../google/protobuf/Timestamp.ts';
import type { Long } from '@grpc/proto-loader';

export interface Layer {
  'digest'?: (string);
  'cid'?: (string);
  'diffId'?: (string);
  'mediaType'?: (string);
  'format'?: (string);
  'layerSize'?: (number | string | Long);
  'blobSize'?: (number | string | Long);
  'presentBytes'?: (number | string | Long);
  'complete'?: (boolean);
  'mounted'?: (boolean);
  'lazilyReadable'?: (boolean);
  'whyNot'?: (string);
  'lastUsedAt'?: (_google_protobuf_Timestamp | null);
  'pinned'?: (boolean);
}

export interface Layer__Output {
  'digest': (string);
  'cid': (string);
  'diffId': (string);
  'mediaType': (string);
  'format': (string);
  'layerSize': (string);
  'blobSize': (string);
  'presentBytes': (string);
  'complete': (boolean);
  'mounted': (boolean);
  'lazilyReadable': (boolean);
  'whyNot': (string);
  'lastUsedAt': (_google_protobuf_Timestamp__Output | null);
  'pinned': (boolean);
}
