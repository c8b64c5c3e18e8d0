// Original file: proto/ipdr/agent.proto

import type { Image as _ipdr_v1_Image, Image__Output as _ipdr_v1_Image__Output } from '../../ipdr/v1/Image.ts';

export interface ListImagesResponse {
  'images'?: (_ipdr_v1_Image)[];
}

export interface ListImagesResponse__Output {
  'images': (_ipdr_v1_Image__Output)[];
}
