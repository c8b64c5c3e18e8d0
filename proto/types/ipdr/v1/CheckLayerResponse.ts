// Original file: proto/ipdr/agent.proto


export interface CheckLayerResponse {
  'whole'?: (boolean);
  'healedUnits'?: (number);
  'healedTables'?: (boolean);
}

export interface CheckLayerResponse__Output {
  'whole': (boolean);
  'healedUnits': (number);
  'healedTables': (boolean);
}
