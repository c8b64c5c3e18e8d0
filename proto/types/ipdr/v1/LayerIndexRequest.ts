// Original file: proto/ipdr/agent.proto


export interface LayerIndexRequest {
  'blobCid'?: (string);
}

export interface LayerIndexRequest__Output {
  'blobCid': (string);
}
